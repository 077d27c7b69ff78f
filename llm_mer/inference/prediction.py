"""What inference returns for one utterance and one task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Prediction:
    """An answer that is always valid, with its probabilities.

    Attributes:
        id, task, language: of the utterance and the question.
        value: label name (classification) or score (regression; the distribution's median unless chosen otherwise).
        probabilities: ``{answer: p}`` over every label name, summing to 1; for regression over every admissible score
            written as text.
        log_probabilities: natural logs of the same, in label or grid order.
        outside_mass: natural log of the probability that a free answer of the language model would be none of these; -15.94
            where it is too small for float32. None for an adapter alone.
        mean, median, mode, interval: of a score's distribution; ``interval`` is the central 80 %. None for classes.
        truth: label name or score when the data knows it.
        generated: text of a free generation when one was asked for. parsed: its value, None when unparseable.
        diagnostics: adapter diagnostics of this sample (expert weights, gates).
        tags: subsets of the utterance. dialogue_id, turn, speaker: its place in a conversation.
        position, length: filled in by an evaluation. 1 for the first utterance of its conversation, 2 for the next, …; words
            of its own transcript (characters of Chinese), whatever a condition made of it. None where there is none.
        head_value: the adapter head's own prediction, where it has one.
        seconds: wall time of the batch divided by its size.
    """

    id: str
    task: str
    language: str
    value: str | float
    probabilities: dict[str, float] = field(default_factory=dict)
    log_probabilities: list[float] = field(default_factory=list)
    outside_mass: float | None = None
    mean: float | None = None
    median: float | None = None
    mode: float | None = None
    interval: tuple[float, float] | None = None
    truth: str | float | None = None
    generated: str | None = None
    parsed: str | float | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    dialogue_id: str | None = None
    turn: int | None = None
    speaker: str | None = None
    position: int | None = None
    length: int | None = None
    head_value: str | float | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a JSONL line; fields that are None or empty are left out."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != {} and v != [] and v != ()}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Prediction:
        """Read a JSONL line back."""
        entry = dict(entry)
        if "tags" in entry:
            entry["tags"] = tuple(entry["tags"])
        if entry.get("interval") is not None:
            low, high = entry["interval"]
            entry["interval"] = (low, high)
        return cls(**entry)
