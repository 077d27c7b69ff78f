"""Options of ``llm-mer train-backbone``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class TinyBackboneConfig:
    """Size and training of a tiny backbone."""

    architecture: str = field(
        default="llama", metadata={"help": "llama, glm or qwen2", "choices": ["llama", "glm", "qwen2"]}
    )
    output: str | None = field(default=None, metadata={"help": "folder to write; default: a cache keyed by these options"})
    seed: int = field(default=0, metadata={"help": "of the text, the weights and the batches"})
    vocabulary: int = field(default=3200, metadata={"help": "SentencePiece pieces"})
    hidden_size: int = field(default=128, metadata={"help": "embedding size"})
    layers: int = field(default=4, metadata={"help": "decoder blocks"})
    heads: int = field(default=4, metadata={"help": "attention heads (half as many key-value heads)"})
    lines: int = field(default=24000, metadata={"help": "generated lines to train on"})
    steps: int = field(default=450, metadata={"help": "optimiser steps"})
    batch_size: int = field(default=24, metadata={"help": "rows a step"})
    length: int = field(default=64, metadata={"help": "tokens a row"})
    learning_rate: float = field(default=4e-3, metadata={"help": "peak learning rate"})


def cache_folder() -> Path:
    """Where trained tiny backbones are kept: ``$LLM_MER_CACHE``, else ``.llm_mer_cache`` in the working directory."""
    return Path(os.environ.get("LLM_MER_CACHE", ".llm_mer_cache")) / "backbones"
