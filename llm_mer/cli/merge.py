"""``llm-mer merge``: a checkpoint with LoRA merged into plain backbone weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llm_mer.adapters import use_adapter
from llm_mer.checkpoints.merging import DTYPES, merge_checkpoint
from llm_mer.prompting.languages import LANGUAGES


@dataclass
class MergeConfig:
    """Options of ``llm-mer merge``."""

    checkpoint: str = field(default="", metadata={"help": "checkpoint folder", "required": True})
    output: str = field(default="", metadata={"help": "folder to write, new or empty", "required": True})
    language: str | None = field(
        default=None,
        metadata={
            "help": "where each language has a LoRA of its own: the one to merge; the result answers in it alone",
            "choices": list(LANGUAGES),
        },
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "type of the merged weights; auto is the one trained beside", "choices": list(DTYPES)},
    )
    backbone: str | None = field(default=None, metadata={"help": "the backbone's folder, where it is not in the checkpoint"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )


def merge(config: MergeConfig) -> str:
    """``llm-mer merge``: see :func:`merge_checkpoint`."""
    if config.adapter is not None:
        use_adapter(config.adapter)
    folder = merge_checkpoint(Path(config.checkpoint), Path(config.output), config.language, config.dtype, config.backbone)
    return f"{folder}: merged; it loads like any checkpoint, its backbone/ like any language model"
