"""A trained checkpoint as plain weights: LoRA added to the backbone, which then needs neither PEFT nor bitsandbytes.

    W' = W + s · B (m_l ⊙ A)

with ``W`` dequantised where it was NF4 or int8, and ``m_l`` the ranks of one language where LoRA is routed by language (see
:mod:`llm_mer.backbones.language_lora`), all ones elsewhere. Sums are taken in float32 and rounded to the weight's type once.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_mer.checkpoints.precision import AUTO, PRECISIONS
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.storage.atomic_files import new_folder


def merge_checkpoint(
    checkpoint: Path, output: Path, language: str | None = None, dtype: str = AUTO, backbone: str | None = None
) -> Path:
    """Write ``output``: ``backbone/`` with LoRA inside, the adapter's weights, the tokenizer and the description.

    The whole model is held in memory once, in ``dtype``; a quantised one as it is, and one layer at a time beside it.

    Args:
        language: which LoRA to merge where each language has its own; the result keeps the prompts of that language only, so
            that it refuses the others. dtype: of the merged weights; ``auto`` is the type of the training's backbone.
        backbone: folder or hub name of the backbone, where the checkpoint does not hold it.

    Raises:
        UserError: no checkpoint, one without LoRA (an adapter alone, or merged already), a language that is missing,
            unknown or without need, an output that is not empty, or no room.
    """
    from llm_mer.backbones.language_lora import SHARED
    from llm_mer.checkpoints.backbone_reference import BACKBONE_COPY, folder_fingerprint
    from llm_mer.checkpoints.calibration import Calibration, answering_weights_digest
    from llm_mer.checkpoints.description import BackboneReference, CheckpointDescription
    from llm_mer.checkpoints.integrity import write_checksums
    from llm_mer.checkpoints.loading import load_checkpoint

    description = CheckpointDescription.load(checkpoint)
    reference = description.backbone
    if reference is None:
        raise UserError(f"{checkpoint} holds an adapter alone, trained with --backbone none; there is no LoRA to merge")
    if description.merged is not None:
        raise UserError(f"{checkpoint} is merged already")
    sharing = description.model.get("lora_sharing", SHARED)
    if sharing != SHARED and language not in LANGUAGES:
        raise UserError(
            f"{checkpoint} routes LoRA by language (lora_sharing {sharing}), and plain weights cannot; "
            f"name the one to merge: --language {' or '.join(LANGUAGES)}"
        )
    if sharing == SHARED and language is not None:
        raise UserError(f"--language {language}: {checkpoint} has one LoRA for all languages; leave the option out")
    wanted = reference.dtype if dtype == AUTO else dtype
    if wanted not in PRECISIONS[1:]:
        raise UserError(f"--dtype: {dtype!r} is not one of {', '.join(PRECISIONS)}")
    calibration = Calibration.load(checkpoint)
    loaded = load_checkpoint(checkpoint, backbone, device="cpu", dtype=wanted)
    model, processor = loaded.model, loaded.processor
    assert processor.tokenizer is not None
    if language is not None:
        processor.prompts = [prompt for prompt in processor.prompts if prompt.language == language]
    core = merge_lora(model, language, getattr(torch, wanted))
    holder = plain_backbone(core)
    needed = sum(value.nbytes for value in holder.state_dict().values())
    with new_folder(output, needed) as staging:
        holder.save_pretrained(staging / BACKBONE_COPY)
        processor.tokenizer.save_pretrained(staging / BACKBONE_COPY)
        processor.tokenizer.save_pretrained(staging)
        save_fusion_adapter(core.model.fusion_adapter, staging, core.read_out)
        text_config = holder.config.to_dict()
        text_config.pop("_name_or_path", None)
        fingerprint = folder_fingerprint(staging / BACKBONE_COPY)
        dataclasses.replace(
            description,
            model={**description.model, "text_config": text_config, "lora_sharing": SHARED},
            processor=processor.to_dict(),
            backbone=BackboneReference(f"{reference.name} with LoRA", BACKBONE_COPY, fingerprint, "none", wanted),
            merged={"language": language, "lora_sharing": sharing, "quantization": reference.quantization},
        ).save(staging)
        if calibration is not None:  # the same answers to within rounding have the same temperatures
            digest = answering_weights_digest(staging)
            assert digest is not None
            dataclasses.replace(calibration, weights_sha256=digest).save(staging)
        write_checksums(staging)
    return output


def merge_lora(model: nn.Module, language: str | None, dtype: torch.dtype) -> Any:
    """Replace every adapted or quantised linear layer by a plain one of ``dtype``; returns the model inside PEFT's."""
    from peft.tuners.lora import LoraLayer

    from llm_mer.model.modeling_mer import conditional_generation_of, fusion_adapter_of
    from llm_mer.model.read_out import read_out_of

    core: Any = conditional_generation_of(model)
    router = core.model.language_router
    adapter, read_out = fusion_adapter_of(model), read_out_of(model)
    # Names, so that nothing keeps a layer alive once it has been replaced.
    names = {
        name: isinstance(module, LoraLayer)
        for name, module in core.named_modules()
        if isinstance(module, LoraLayer) or (is_quantised(module) and not name.endswith("base_layer"))
    }
    with torch.no_grad():
        for name, adapted in track_progress(names.items(), description="merge", unit="layer", keep=False):
            module: Any = core.get_submodule(name)
            base = module.get_base_layer() if adapted else module
            weight = plain_weight(base).float()
            if adapted:
                for key in module.active_adapters:
                    if router is not None:
                        used = router.table[LANGUAGES.index(str(language))]
                        down = module.lora_A[key].weight
                        down.mul_(used.to(down.device, down.dtype).unsqueeze(1))
                    weight = weight + module.get_delta_weight(key).float()
            merged = nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, device="meta")
            merged.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
            if base.bias is not None:
                merged.bias = nn.Parameter(base.bias.to(dtype), requires_grad=False)
            core.set_submodule(name, merged)
    core.model.language_router = None
    core.model.fusion_adapter = adapter
    core.read_out = read_out
    return core


def is_quantised(module: nn.Module) -> bool:
    """Whether bitsandbytes holds this layer's weight."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def plain_weight(layer: Any) -> Tensor:
    """``(out, in)`` weight of a linear layer, dequantised where it must be."""
    if not is_quantised(layer):
        weight: Tensor = layer.weight.detach()
        return weight
    from peft.utils.integrations import dequantize_module_weight

    found: Tensor = dequantize_module_weight(layer).detach()
    return found


def plain_backbone(core: Any) -> Any:
    """The causal language model around the body and head that the model was built on."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(core.model.language_model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = core.get_input_embeddings().weight.dtype
    with torch.device("meta"):
        holder = AutoModelForCausalLM.from_config(config)
    prefix = holder.base_model_prefix
    state = {f"{prefix}.{name}": value for name, value in core.model.language_model.state_dict().items()}
    state |= {f"lm_head.{name}": value for name, value in core.lm_head.state_dict().items()}
    holder.load_state_dict(state, assign=True)
    holder.tie_weights()
    holder.generation_config = core.generation_config
    return holder


def save_fusion_adapter(adapter: Any, folder: Path, read_out: nn.Module | None = None) -> None:
    """Write the adapter's weights without what only training needs, and those of a read-out."""
    from safetensors.torch import save_file

    from llm_mer.checkpoints.weights import FUSION_ADAPTER_FILE, READ_OUT_PREFIX, is_training_only

    prefixes = adapter.training_only_parameters()
    state = adapter.state_dict()
    kept = {name: value.detach().contiguous() for name, value in state.items() if not is_training_only(name, prefixes)}
    if read_out is not None:
        kept |= {f"{READ_OUT_PREFIX}{name}": value.detach().contiguous() for name, value in read_out.state_dict().items()}
    save_file(kept, folder / FUSION_ADAPTER_FILE, metadata={"format": "pt"})
