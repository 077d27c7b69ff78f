"""What inference returns for one utterance and one task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from llm_mer.errors import UserError


@dataclass(frozen=True)
class WindowAnswer:
    """The answer about one window of a long clip, ``start`` to ``end`` in seconds; its fields are those of a prediction."""

    start: float
    end: float
    value: str | float
    probabilities: dict[str, float] = field(default_factory=dict)
    generated: str | None = None
    parsed: str | float | None = None


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
        temperature: by which the logarithms of the probabilities were divided before they were normalised again; None where
            the checkpoint has none for the question.
        mean, median, mode, interval: of a score's distribution; ``interval`` is the central 80 %. None for classes.
        precision: type of the numbers the language model computed with: an answer in bfloat16 is not that of float32.
        truth: label name or score when the data knows it.
        votes: annotators who named each label, where the data know it. annotators: how many there were; None where each
            named one label.
        generated: text of a free generation when one was asked for. parsed: its value, None when unparseable.
        diagnostics: adapter diagnostics of this sample (expert weights, gates).
        tags: subsets of the utterance. dialogue_id, turn, speaker: its place in a conversation.
        position, length: filled in by an evaluation. 1 for the first utterance of its conversation, 2 for the next, …; words
            of its own transcript (characters of Chinese), whatever a condition made of it. None where there is none.
        cut: ``{modality: (read, given)}`` where more is given than the adapter reads: steps, or tokens of the transcript,
            which prompts show whole. Empty where it read everything.
        unread: ``audio``, ``vision``, ``text`` (features) and ``transcript``, where they are given and neither the adapter
            nor a prompt reads them.
        flags: what is wrong with the recording (:data:`llm_mer.data.flags.FLAGS`), as its extraction found.
        windows: the answers about the windows of a long clip, whose mean this is (:mod:`llm_mer.inference.windows`); empty
            for a clip that was read whole.
        training_distance: ``{modality: distance}`` of the features from the training data; 1 is the distance within which
            99 % of the validation utterances lie. Empty where the checkpoint does not know.
        read_out: what a checkpoint that has a read-out reads off the hidden state: a label name, or a score inside its
            range. read_out_log_probabilities: of the labels, in their order; None for scores.
        head_value: the adapter head's own prediction, where it has one. head_log_probabilities: of the labels, in their
            order, where a language model answers beside it.
        pool_weights: what each distribution weighed whose pool is the answer; None where none was asked for.
        speaker_utterances: from how many utterances the speaker is known, where the checkpoint normalises features by
            speaker; 1 where the utterance stands alone. None otherwise.
        seconds: wall time of the batch divided by its size.
    """

    id: str
    task: str
    language: str
    value: str | float
    probabilities: dict[str, float] = field(default_factory=dict)
    log_probabilities: list[float] = field(default_factory=list)
    outside_mass: float | None = None
    precision: str | None = None
    temperature: float | None = None
    mean: float | None = None
    median: float | None = None
    mode: float | None = None
    interval: tuple[float, float] | None = None
    truth: str | float | None = None
    votes: dict[str, int] = field(default_factory=dict)
    annotators: int | None = None
    generated: str | None = None
    parsed: str | float | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    dialogue_id: str | None = None
    turn: int | None = None
    speaker: str | None = None
    position: int | None = None
    length: int | None = None
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    windows: list[WindowAnswer] = field(default_factory=list)
    training_distance: dict[str, float] = field(default_factory=dict)
    read_out: str | float | None = None
    read_out_log_probabilities: list[float] | None = None
    head_value: str | float | None = None
    head_log_probabilities: list[float] | None = None
    pool_weights: dict[str, float] | None = None
    speaker_utterances: int | None = None
    seconds: float | None = None

    @property
    def far_from_training(self) -> list[str]:
        """Modalities beyond the training range (:attr:`training_distance` above 1)."""
        return sorted(modality for modality, distance in self.training_distance.items() if distance > 1)

    @property
    def is_finite(self) -> bool:
        """Whether every number of the answer is one, its diagnostics' too."""
        return _is_finite(asdict(self))

    def from_read_out(self) -> Prediction:
        """The same with what was read out for its answer: certain of nothing but a label's probabilities."""
        assert self.read_out is not None
        log_probs = self.read_out_log_probabilities or []
        shares = dict(zip(self.probabilities, np.exp(log_probs).round(6).tolist(), strict=True)) if log_probs else {}
        return replace(
            self,
            value=self.read_out,
            probabilities=shares,
            log_probabilities=log_probs,
            outside_mass=None,
            temperature=None,
            mean=None,
            median=None,
            mode=None,
            interval=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a JSONL line; fields that are None or empty are left out."""
        entry = {k: v for k, v in asdict(self).items() if v is not None and v != {} and v != [] and v != ()}
        if self.windows:
            entry["windows"] = [{k: v for k, v in window.items() if v is not None} for window in entry["windows"]]
        return entry

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Prediction:
        """Read a JSONL line back; in diagnostics, null is NaN."""
        entry = dict(entry)
        if "tags" in entry:
            entry["tags"] = tuple(entry["tags"])
        if entry.get("interval") is not None:
            low, high = entry["interval"]
            entry["interval"] = (low, high)
        if "cut" in entry:
            entry["cut"] = {name: (read, given) for name, (read, given) in entry["cut"].items()}
        if "windows" in entry:
            entry["windows"] = [WindowAnswer(**window) for window in entry["windows"]]
        if "diagnostics" in entry:
            entry["diagnostics"] = _with_nan(entry["diagnostics"])
        return cls(**entry)


def not_finite(prediction: Prediction) -> str:
    """What to say of an answer that :attr:`Prediction.is_finite` denies."""
    return f"task {prediction.task!r}: the answer holds NaN or infinity; the model overflows or is damaged"


def require_finite_answers(predictions: Iterable[Prediction]) -> None:
    """Refuse answers that would be scored though the model gave none.

    Raises:
        UserError: naming the first utterance whose answer holds NaN or infinity.
    """
    for prediction in predictions:
        if not prediction.is_finite:
            raise UserError(f"utterance {prediction.id!r}: {not_finite(prediction)}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    return all(map(_is_finite, value))


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return math.nan if value is None else value
