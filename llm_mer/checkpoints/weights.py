"""Trained weights of a checkpoint: read, validated against the model, written without training-only parameters."""

from __future__ import annotations

from pathlib import Path

import torch

from llm_mer.backbones.language_lora import route_by_language
from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import MerForConditionalGeneration, fusion_adapter_of
from llm_mer.storage.finite_tensors import require_finite
from llm_mer.storage.json_files import read_json_object

FUSION_ADAPTER_FILE = "fusion_adapter.safetensors"
"""The adapter's weights in a merged checkpoint, which has no LoRA beside them."""
READ_OUT_PREFIX = "read_out:"
"""Begins the names of a read-out's weights in that file."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file. Raises :class:`UserError` when it is missing, cut off, or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}")
    try:
        state = dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut off: {error}") from None
    require_finite(state.items(), str(path))
    return state


def is_training_only(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a part of the parameter's dotted name begins with one of an adapter's training-only prefixes."""
    return any(f".{prefix}" in f".{name}" for prefix in prefixes)


def validate_state_dict(
    path: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], model: torch.nn.Module
) -> None:
    """Compare names, shapes and kinds with those of the model; training-only parameters may be missing.

    Raises:
        UserError: naming missing and unexpected parameters, one of another shape, or whole numbers in place of real ones.
    """
    prefixes = fusion_adapter_of(model).training_only_parameters()
    missing = sorted(name for name in expected if name not in state and not is_training_only(name, prefixes))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        raise UserError(f"{path}: weights do not fit the description: missing {missing[:4]}, unexpected {unexpected[:4]}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(value.shape)}, the description asks for {tuple(expected[name].shape)}"
            )
        if value.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{path}: {name} is {value.dtype}, the description asks for {expected[name].dtype}")


def load_adapter_weights(base: MerForConditionalGeneration, folder: Path) -> torch.nn.Module:
    """Load LoRA and fusion-adapter weights of a PEFT checkpoint into a new model. Raises ``UserError`` for a mismatch."""
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    state = read_weights(path)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json; the checkpoint is incomplete")
    read_json_object(folder / "adapter_config.json")  # strictly, where PEFT keeps the last of two values
    try:
        peft_config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'adapter_config.json'}: damaged: {error}") from None
    peft_config.inference_mode = True
    peft_config.base_model_name_or_path = None  # the description says where the backbone is
    model = get_peft_model(base, peft_config)
    # Training-only parameters, which a checkpoint leaves out, keep their initial values: PEFT fails on a missing key.
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    validate_state_dict(path, state, own, model)
    set_peft_model_state_dict(model, {**own, **state})
    assert isinstance(peft_config, LoraConfig)
    base.model.language_router = route_by_language(base, base.config.lora_sharing, peft_config.r)
    return model


def load_merged_weights(base: MerForConditionalGeneration, folder: Path) -> torch.nn.Module:
    """Load the weights of adapter and read-out beside a merged backbone. Raises ``UserError`` when they do not match."""
    path = folder / FUSION_ADAPTER_FILE
    state = read_weights(path)
    adapter = fusion_adapter_of(base)
    own = {} if base.read_out is None else base.read_out.state_dict()
    validate_state_dict(path, state, adapter.state_dict() | {READ_OUT_PREFIX + k: v for k, v in own.items()}, base)
    if base.read_out is not None:
        base.read_out.load_state_dict({name: state.pop(READ_OUT_PREFIX + name) for name in own})
    adapter.load_state_dict(state, strict=False)
    return base


def load_head_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load the weights of a model without a backbone (``--backbone none``). Raises ``UserError`` when they do not match."""
    path = folder / "model.safetensors"
    state = read_weights(path)
    validate_state_dict(path, state, model.state_dict(), model)
    model.load_state_dict(state, strict=False)


def drop_training_only_parameters(folder: Path, prefixes: tuple[str, ...]) -> int:
    """Delete training-only parameters from the weight files in ``folder``; returns the number of tensors deleted."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if not prefixes:
        return 0
    dropped = 0
    for name in ("adapter_model.safetensors", "model.safetensors"):
        path = folder / name
        if not path.is_file():
            continue
        with safe_open(path, "pt") as stream:
            header = stream.metadata()
        state = load_file(path)
        kept = {k: v for k, v in state.items() if not is_training_only(k, prefixes)}
        dropped += len(state) - len(kept)
        save_file(kept, path, metadata=header)
    return dropped
