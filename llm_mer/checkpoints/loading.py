"""A checkpoint folder to a model in evaluation mode with its processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from llm_mer.checkpoints.backbone_reference import find_backbone
from llm_mer.checkpoints.description import DESCRIPTION_FILE, CheckpointDescription, check_description
from llm_mer.checkpoints.hub import resolve_checkpoint
from llm_mer.checkpoints.integrity import verify_checkpoint
from llm_mer.checkpoints.precision import AUTO, resolve_precision
from llm_mer.checkpoints.weights import load_adapter_weights, load_head_weights, load_merged_weights
from llm_mer.errors import UserError, first_line
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.modeling_mer import MerForConditionalGeneration, MerHeadModel
from llm_mer.model.processing_mer import MerProcessor


@dataclass
class LoadedCheckpoint:
    """A model in eval mode with all it needs to answer."""

    model: torch.nn.Module
    processor: MerProcessor
    description: CheckpointDescription


def load_checkpoint(
    checkpoint: Path | str,
    backbone: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype = AUTO,
    revision: str | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint from a folder alone, or by its name on the hub.

    Args:
        checkpoint: a folder, or ``owner/name``. revision: branch, tag or commit of the latter.
        backbone: use this backbone instead of the recorded place (its fingerprint must agree).
        device: ``cpu``, ``cuda`` …; default: the accelerator when there is one.
        dtype: one of :data:`~llm_mer.checkpoints.precision.PRECISIONS`, or torch's: what the backbone computes with.
            ``auto`` is float32 on a CPU, else the type it was trained with. Adapter and LoRA stay float32.

    Raises:
        UserError: not a checkpoint, a missing or different backbone, weights that do not fit or are not finite (in float16,
            those beyond 65504), a file that is not the one written, or an unknown ``dtype``.
    """
    folder = resolve_checkpoint(checkpoint, revision)
    description = CheckpointDescription.load(folder)
    check_description(description, folder / DESCRIPTION_FILE)
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    precision = resolve_precision(dtype, description.backbone, torch.device(device).type, str(folder))
    entry = dict(description.model)
    if description.backbone is None:
        config = MerConfig(**entry)
        model: torch.nn.Module = MerHeadModel(config)
        tokenizer: PreTrainedTokenizerBase | None = None
        load_head_weights(model, folder)
    else:
        from llm_mer.backbones.loading import load_backbone

        source = find_backbone(description.backbone, folder, backbone)
        loaded = load_backbone(source, dtype=precision, quantization=description.backbone.quantization)
        config = MerConfig(text_config=loaded.model.config, **{k: v for k, v in entry.items() if k != "text_config"})
        base = MerForConditionalGeneration.from_backbone(loaded.model, config)
        model = load_adapter_weights(base, folder) if description.merged is None else load_merged_weights(base, folder)
        tokenizer = load_tokenizer(folder)
    processor = MerProcessor.from_dict(description.processor, tokenizer)
    # Last, so that a file that cannot be read at all is told by what is wrong in it.
    verify_checkpoint(folder)
    if description.backbone is None or description.backbone.quantization == "none":
        model = model.to(device)
    return LoadedCheckpoint(model.eval(), processor, description)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises :class:`UserError` when its files are missing or damaged."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: no tokenizer_config.json; the checkpoint is incomplete")
    from llm_mer.backbones.loading import read_tokenizer

    try:
        return read_tokenizer(folder)
    except Exception as error:  # a damaged file surfaces as whatever its reader raises
        reason = first_line(error)
        raise UserError(f"{folder}: the tokenizer's files are missing or damaged: {reason}") from error
