"""Options of ``llm-mer report``; without heavy imports, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportConfig:
    """Options of ``llm-mer report``."""

    evaluations: list[str] = field(
        default_factory=list,
        metadata={"help": "checkpoint or evaluation folders; the first is the one described in full", "required": True},
    )
    text_only: str | None = field(
        default=None, metadata={"help": "evaluation of a checkpoint that reads text alone, on the same split"}
    )
    inference: str | None = field(default=None, metadata={"help": "JSONL written by infer.py, shown as examples"})
    facts: str = field(
        default="none",
        metadata={"help": "also judge the three facts of the quickstart", "choices": ["none", "quickstart"]},
    )
    note: str | None = field(
        default=None, metadata={"help": "a note on the data at the top (quickstart: that its corpus is synthetic)"}
    )
    title: str = field(default="", metadata={"help": "heading of the page (default: adapter and data)"})
    output: str = field(default="report.html", metadata={"help": "HTML file to write"})
