"""Options of ``llm-mer merge``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_mer.checkpoints.precision import AUTO, PRECISIONS
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
        default=AUTO,
        metadata={"help": "type of the merged weights; auto is the one trained beside", "choices": list(PRECISIONS)},
    )
    backbone: str | None = field(default=None, metadata={"help": "the backbone's folder, where it is not in the checkpoint"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )
