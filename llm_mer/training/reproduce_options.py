"""Options of ``llm-mer reproduce``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReproduceConfig:
    """Options of ``llm-mer reproduce``."""

    run: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True, "positional": True})
    output: str = field(default="", metadata={"help": "folder of the new run (default: RUN-reproduced)"})
    data: str = field(default="", metadata={"help": "where the same data lie now (default: where they lay then)"})
    folds: str = field(default="", metadata={"help": "where the same file of folds lies now (default: where it lay then)"})
    backbone: str = field(default="", metadata={"help": "where the same backbone lies now (default: where it lay then)"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the run's adapter is a class of yours"}
    )
    tolerance: float = field(default=1e-6, metadata={"help": "largest difference of a metric that still counts as the same"})
