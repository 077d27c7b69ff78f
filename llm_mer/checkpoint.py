"""A checkpoint that describes itself: what it was trained on, how to ask it, and where its backbone is."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llm_mer import __version__
from llm_mer.backbones.language_lora import route_by_language
from llm_mer.configuration import MerConfig, build_adapter_config
from llm_mer.errors import UserError, first_line
from llm_mer.modeling import MerForConditionalGeneration, MerHeadModel, fusion_adapter_of
from llm_mer.processing import MerProcessor

TRAJECTORIES = "trajectories.jsonl"
"""Where the vectors that an adapter follows stood at the start and after each epoch, beside the checkpoint."""

DESCRIPTION_FILE = "llm_mer.json"
FORMAT_VERSION = 1
REQUIRED: dict[str, tuple[str, ...]] = {
    "model": ("adapter", "adapter_config", "text_source"),
    "processor": ("tasks", "prompts", "feature_sizes", "statistics", "num_pseudo_tokens"),
}
"""What a description cannot do without."""
FUSION_ADAPTER_FILE = "fusion_adapter.safetensors"
"""The adapter's weights in a merged checkpoint, which has no LoRA beside them."""
BACKBONE_COPY = "backbone"
"""Folder of a backbone that lies in a checkpoint, or one folder up."""
COPY_LIMIT = 200 * 2**20
"""A local backbone folder up to this size is copied into the checkpoint unless told otherwise."""


@dataclass
class BackboneReference:
    """Where the frozen backbone is.

    Attributes:
        name: hub name, or the name of the local folder it came from.
        folder: where a copy lies, relative to the checkpoint or to its parent; None when it was not copied.
        fingerprint: SHA-256 of its configuration and weights, None for a hub name.
        quantization, dtype: how it was loaded for training.
    """

    name: str
    folder: str | None = None
    fingerprint: str | None = None
    quantization: str = "none"
    dtype: str = "float32"


@dataclass
class CheckpointDescription:
    """The content of ``llm_mer.json``.

    Attributes:
        model: :class:`~llm_mer.configuration.MerConfig` as plain values (backbone configuration included).
        processor: :meth:`MerProcessor.to_dict`. backbone: None for an adapter alone.
        data: fingerprint, counts and feature settings of the training data.
        baselines: ``{task: {"truths": …}}`` what the trivial answers need: label counts or score mean.
        shift_probability: ``{task: p0}`` of the Dialogical Emotion Decoder, from the training dialogues.
        context: window size and direction. training: loss weights, seed, LoRA. versions: of the stack.
        merged: language, sharing and quantisation of the LoRA that is in the backbone's weights; None where LoRA is apart.
    """

    model: dict[str, Any]
    processor: dict[str, Any]
    backbone: BackboneReference | None
    data: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    shift_probability: dict[str, float] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    merged: dict[str, Any] | None = None
    format: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write ``llm_mer.json``."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CheckpointDescription:
        """Read ``llm_mer.json``. Raises :class:`UserError` when the folder is no checkpoint of ours."""
        path = folder / DESCRIPTION_FILE
        if not path.is_file():
            raise UserError(f"{folder}: no {DESCRIPTION_FILE}; it is not a checkpoint written by finetune.py")
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: damaged or cut off, not JSON: {error}") from None
        found = entry.get("format") if isinstance(entry, dict) else None
        if found != FORMAT_VERSION:
            raise UserError(f"{path}: format {found!r}, this program reads {FORMAT_VERSION}")
        try:
            for part, names in REQUIRED.items():
                lacking = [name for name in names if name not in entry[part]]
                if lacking:
                    raise KeyError(f"{part} has no {', '.join(lacking)}")
            if entry["backbone"] is not None:
                entry["backbone"] = BackboneReference(**entry["backbone"])
            return cls(**entry)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged or edited: {error}") from None


def stack_versions() -> dict[str, str]:
    """Versions of what a checkpoint depends on."""
    required = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "xlstm", "numpy")
    names = (*required, "deepspeed", "bitsandbytes", "liger-kernel")
    found = {"llm_mer": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over ``config.json`` and every weight file of a local backbone."""
    digest = hashlib.sha256()
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"backbone: {folder} has no config.json; a backbone folder is one written by save_pretrained")
    for path in sorted([config, *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def reference_backbone(source: str, output: Path, save: str, quantization: str, dtype: str) -> BackboneReference:
    """Describe the backbone, copying a local folder into ``output/backbone`` as ``save`` says."""
    path = Path(source)
    if not path.is_dir():
        return BackboneReference(source, None, None, quantization, dtype)
    fingerprint = folder_fingerprint(path)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    folder = None
    if save == "always" or (save == "auto" and size <= COPY_LIMIT):
        target = output / BACKBONE_COPY
        if not (target.is_dir() and folder_fingerprint(target) == fingerprint):
            scratch = output / ".backbone"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(path, scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)  # under its name only when whole
        folder = BACKBONE_COPY
    return BackboneReference(path.name, folder, fingerprint, quantization, dtype)


def check_backbone(reference: BackboneReference | None, source: str, checkpoint: str) -> None:
    """Refuse a backbone that is not the one a checkpoint was trained on, naming both fingerprints.

    Raises:
        UserError: other weights or configuration, or a checkpoint of an adapter alone. What came from the hub, or goes
            there, has no fingerprint and is taken at its word.
    """
    if reference is None:
        raise UserError(f"{checkpoint} holds an adapter alone, trained with --backbone none; {source!r} has no place in it")
    if reference.fingerprint is None or not Path(source).is_dir():
        return
    found = folder_fingerprint(Path(source))
    if found != reference.fingerprint:
        raise UserError(
            f"{source}: fingerprint {found[:12]}…, but {checkpoint} was trained on a backbone with "
            f"{reference.fingerprint[:12]}…"
        )


def find_backbone(reference: BackboneReference, checkpoint: Path, override: str | None) -> str:
    """Where to load the backbone from: an override, the copy beside the checkpoint, or the hub name.

    Raises:
        UserError: a local backbone that was not copied, or one whose weights are not those trained on.
    """
    if override is None and reference.folder is not None:
        for base in (checkpoint, checkpoint.parent):
            if (base / reference.folder / "config.json").is_file():
                check_backbone(reference, str(base / reference.folder), str(checkpoint))
                return str(base / reference.folder)
        raise UserError(f"{checkpoint}: its backbone should lie in {reference.folder}/ here or one folder up; it does not")
    if override is not None:
        check_backbone(reference, override, str(checkpoint))
        return override
    if reference.fingerprint is not None:
        raise UserError(
            f"{checkpoint} was trained on the local backbone {reference.name!r}, which was not copied into it; "
            f"name its folder with --backbone (fingerprint {reference.fingerprint[:12]}…)"
        )
    return reference.name


@dataclass
class LoadedCheckpoint:
    """A model in eval mode with all it needs to answer."""

    model: torch.nn.Module
    processor: MerProcessor
    description: CheckpointDescription


def load_checkpoint(
    folder: Path | str, backbone: str | None = None, device: str | None = None, dtype: str | None = None
) -> LoadedCheckpoint:
    """Load a checkpoint from the folder alone.

    Args:
        backbone: use this backbone instead of the recorded place (its fingerprint must agree).
        device: ``cpu``, ``cuda`` …; default: the accelerator when there is one.
        dtype: of the backbone; default: float32 on a CPU, else the one it was trained with.

    Raises:
        UserError: not a checkpoint, a missing or different backbone, or weights that do not fit.
    """
    folder = Path(folder)
    description = CheckpointDescription.load(folder)
    check_description(description, folder / DESCRIPTION_FILE)
    if device is None:
        device = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"  # type: ignore[union-attr]
    entry = dict(description.model)
    if description.backbone is None:
        config = MerConfig(**entry)
        model: torch.nn.Module = MerHeadModel(config)
        tokenizer: PreTrainedTokenizerBase | None = None
        load_head_weights(model, folder)
    else:
        from llm_mer.backbones.loading import load_backbone

        source = find_backbone(description.backbone, folder, backbone)
        if dtype is None:
            dtype = description.backbone.dtype if device != "cpu" else "float32"
        loaded = load_backbone(source, dtype=dtype, quantization=description.backbone.quantization)
        config = MerConfig(text_config=loaded.model.config, **{k: v for k, v in entry.items() if k != "text_config"})
        base = MerForConditionalGeneration.from_backbone(loaded.model, config)
        model = load_adapter_weights(base, folder) if description.merged is None else load_merged_weights(base, folder)
        tokenizer = load_tokenizer(folder)
    processor = MerProcessor.from_dict(description.processor, tokenizer)
    if description.backbone is None or description.backbone.quantization == "none":
        model = model.to(device)
    return LoadedCheckpoint(model.eval(), processor, description)


def check_description(description: CheckpointDescription, path: Path) -> None:
    """Build what can be built without weights: the adapter's configuration, tasks and prompts.

    Raises:
        UserError: naming ``path`` and what is wrong in it.
    """
    try:
        build_adapter_config(description.model["adapter"], description.model["adapter_config"] or {})
        MerProcessor.from_dict(description.processor, None)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged or edited: {error!r}") from None
    except ValueError as error:
        raise UserError(f"{path}: {first_line(error)}") from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises :class:`UserError` when its files are missing or damaged."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer_config.json; the checkpoint is incomplete")
    from llm_mer.backbones.loading import read_tokenizer

    try:
        return read_tokenizer(folder, local=True)
    except Exception as error:  # a damaged file surfaces as whatever its reader raises
        reason = first_line(error)
        raise UserError(f"{folder}: the tokenizer's files are missing or damaged: {reason}") from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file. Raises :class:`UserError` when it is missing or cut off."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut off: {error}") from None


def is_training_only(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a weight's name has one of an adapter's training-only prefixes at the beginning of some part of it."""
    return any(f".{prefix}" in f".{name}" for prefix in prefixes)


def fits(path: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Size], model: torch.nn.Module) -> None:
    """Compare weights with what the model expects; those that only training needs may be missing.

    Raises:
        UserError: naming missing and unexpected weights, or one of another shape.
    """
    prefixes = fusion_adapter_of(model).training_only_parameters()
    missing = sorted(name for name in expected if name not in state and not is_training_only(name, prefixes))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        raise UserError(f"{path}: weights do not fit the description: missing {missing[:4]}, unexpected {unexpected[:4]}")
    for name, value in state.items():
        if value.shape != expected[name]:
            raise UserError(
                f"{path}: {name} has shape {tuple(value.shape)}, the description asks for {tuple(expected[name])}"
            )


def load_adapter_weights(base: MerForConditionalGeneration, folder: Path) -> torch.nn.Module:
    """LoRA and fusion-adapter weights of a PEFT checkpoint onto a fresh base. Raises ``UserError`` when they do not fit."""
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    state = read_weights(path)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json; the checkpoint is incomplete")
    try:
        peft_config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'adapter_config.json'}: damaged: {error}") from None
    peft_config.inference_mode = True
    model = get_peft_model(base, peft_config)
    # What an inference checkpoint leaves out on purpose keeps its fresh values: PEFT itself fails on a missing key.
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    fits(path, state, {name: value.shape for name, value in own.items()}, model)
    set_peft_model_state_dict(model, {**own, **state})
    assert isinstance(peft_config, LoraConfig)
    base.model.language_router = route_by_language(base, base.config.lora_sharing, peft_config.r)
    return model


def load_merged_weights(base: MerForConditionalGeneration, folder: Path) -> torch.nn.Module:
    """Weights of the adapter beside a backbone that has LoRA in its own. Raises ``UserError`` when they do not fit."""
    path = folder / FUSION_ADAPTER_FILE
    state = read_weights(path)
    adapter = fusion_adapter_of(base)
    fits(path, state, {name: value.shape for name, value in adapter.state_dict().items()}, base)
    adapter.load_state_dict(state, strict=False)
    return base


def load_head_weights(model: torch.nn.Module, folder: Path) -> None:
    """Weights of an adapter alone."""
    path = folder / "model.safetensors"
    state = read_weights(path)
    fits(path, state, {name: value.shape for name, value in model.state_dict().items()}, model)
    model.load_state_dict(state, strict=False)


def drop_training_only(folder: Path, prefixes: tuple[str, ...]) -> int:
    """Remove parameters that only training needs from the weights in ``folder``; returns how many tensors went."""
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
