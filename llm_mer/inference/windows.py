"""Long clips in windows: an answer for each window, and their mean as the answer of the clip."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError
from llm_mer.inference.answer_values import fill_distribution
from llm_mer.inference.prediction import Prediction, WindowAnswer
from llm_mer.model.step_limits import StepLimits
from llm_mer.prompting.tasks import Task

LEAST_STEPS = 2
"""A modality that has fewer steps in a window is missing there."""
ROUNDING = 1e-6


@dataclass(frozen=True)
class ClipWindow:
    """Part of a clip, in seconds from its beginning."""

    start: float
    end: float


@dataclass(frozen=True)
class ClipWindows:
    """Windows of equal length, evenly placed: the first begins with the clip and the last ends with it.

    A clip of ``T > L`` seconds gets ``n = ceil((T - o) / (L - o))`` windows of ``L`` seconds, the fewest whose neighbours
    overlap by ``o`` seconds or more; window ``i`` begins at ``i (T - L) / (n - 1)``. A clip of at most ``L`` seconds is read
    whole.

    Attributes:
        seconds: ``L``. overlap: ``o``. limits: what the model reads, of which the rates of the features are known.
    """

    seconds: float
    overlap: float
    limits: StepLimits

    def __post_init__(self) -> None:
        if not self.limits.steps:
            raise UserError(
                f"--windows {self.seconds:g}: this checkpoint's adapter reads means over the whole clip, so nothing of a "
                "long one is lost; leave it out"
            )
        most = self.limits.seconds
        if most is None:
            raise UserError(
                f"--windows {self.seconds:g}: the checkpoint was trained on features of which nobody knows how many steps "
                "make a second; give the parts of a long clip as utterances of their own"
            )
        if not 0 < self.seconds <= most:
            raise UserError(
                f"--windows {self.seconds:g}: it must be above 0 and at most {most:g}, the seconds that are read"
            )
        if not 0 <= self.overlap < self.seconds:
            raise UserError(
                f"--window_overlap {self.overlap:g}: it must be 0 or more and less than --windows {self.seconds:g}"
            )

    def windows_of(self, utterance: Utterance) -> list[ClipWindow]:
        """The windows of an utterance, one for each part; a single one is the whole."""
        lengths = self.limits.lengths(utterance)
        total = max((steps / self.limits.rates[m] for m, steps in lengths.items()), default=0.0)
        if total <= self.seconds + ROUNDING:
            return [ClipWindow(0.0, total)]
        count = math.ceil((total - self.overlap) / (self.seconds - self.overlap) - ROUNDING)
        starts = np.linspace(0.0, total - self.seconds, max(count, 2))
        return [ClipWindow(float(start), float(start) + self.seconds) for start in starts]

    def cut_out(self, utterance: Utterance, window: ClipWindow) -> Utterance:
        """The utterance with the steps of a window; its transcript stays whole, since nobody knows when a word is said."""
        changes: dict[str, Any] = {}
        for modality in self.limits.lengths(utterance):
            sequence, rate = getattr(utterance, FEATURE_COLUMNS[modality]), self.limits.rates[modality]
            if len(sequence) == 1:  # of the whole clip
                continue
            first = math.floor(window.start * rate + ROUNDING)
            steps = sequence[first : first + math.ceil(self.seconds * rate - ROUNDING)]
            changes[FEATURE_COLUMNS[modality]] = steps if len(steps) >= LEAST_STEPS else None
        return dataclasses.replace(utterance, **changes)


def windows_remedy(limits: StepLimits) -> str:
    """What to do with a clip that is longer than is read; windows only where seconds are known."""
    cut = "--long_clips cut answers from the beginning alone"
    if limits.seconds is None:
        return f"give its parts as utterances of their own, or {cut}"
    return f"--windows {math.floor(limits.seconds * 10) / 10:g} answers for each part and for the clip, {cut}"


def pool_windows(answers: Sequence[Prediction], windows: Sequence[ClipWindow], task: Task, statistic: str) -> Prediction:
    """The answer about a clip from those about its windows, which it carries in :attr:`Prediction.windows`.

    ``p(y) = Σ_w p_w(y) / n``: the mean of probabilities. Windows are of equal length and evenly placed, so this is the
    probability of ``y`` at a moment of the clip drawn at random, and shares of time stay shares: a speaker who is angry in
    one window of three is angry by a third. The mean of log-probabilities would multiply windows as if each were independent
    evidence about one unchanging answer; neighbours overlap and share voice and transcript, so it would be overconfident,
    and one window that finds ``y`` impossible would rule it out for the whole clip.

    What a head or a read-out says is pooled likewise, numbers by their mean; diagnostics are means. The distance of a
    modality from the training data is that of its farthest window. A free generation stands with its window alone.

    Args:
        statistic: which point of a score's distribution is its value.
    """
    first = answers[0]
    pooled = dataclasses.replace(
        first,
        log_probabilities=[],
        generated=None,
        parsed=None,
        training_distance=_farthest([answer.training_distance for answer in answers]),
        diagnostics=_mean_diagnostics([answer.diagnostics for answer in answers]),
        windows=[
            WindowAnswer(round(window.start, 3), round(window.end, 3), a.value, a.probabilities, a.generated, a.parsed)
            for window, a in zip(windows, answers, strict=True)
        ],
        outside_mass=_outside([a.outside_mass for a in answers]),
        seconds=sum(answer.seconds or 0.0 for answer in answers),
    )
    scored = _log_mean([a.log_probabilities for a in answers])
    if scored is None:
        pooled.value = _mean([a.value for a in answers])
    else:
        fill_distribution(pooled, task, scored, statistic)
    head = _log_mean([a.head_log_probabilities for a in answers])
    read_out = _log_mean([a.read_out_log_probabilities for a in answers])
    pooled.head_log_probabilities = None if head is None else head.tolist()
    pooled.read_out_log_probabilities = None if read_out is None else read_out.tolist()
    if first.head_value is not None:  # an adapter alone answers by its head
        pooled.head_value = _label_or_mean([a.head_value for a in answers], scored if head is None else head, task)
    if first.read_out is not None:
        pooled.read_out = _label_or_mean([a.read_out for a in answers], read_out, task)
    return pooled


def _log_mean(rows: Sequence[Sequence[float] | None]) -> np.ndarray | None:
    """``log Σ_w exp(row_w) / n`` over ``n`` rows of ``(C,)`` log-probabilities; None where a window has none."""
    if not all(rows):
        return None
    stacked = np.asarray(rows, dtype=np.float64)
    return np.asarray(log_softmax(logsumexp(stacked, axis=0)))


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(np.asarray(values, dtype=np.float64)))


def _label_or_mean(values: Sequence[Any], log_probabilities: np.ndarray | None, task: Task) -> str | float:
    """The most probable label of a pooled distribution, or the mean of scores."""
    if task.kind == "regression":
        return _mean(values)
    assert log_probabilities is not None
    return task.label_names[int(log_probabilities.argmax())]


def _outside(values: Sequence[float | None]) -> float | None:
    """Logarithm of the mean probability outside the answers."""
    known = [value for value in values if value is not None]
    return None if not known else float(logsumexp(known) - math.log(len(known)))


def _farthest(distances: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``{modality: distance}`` of the farthest window that has the modality."""
    modalities = dict.fromkeys(modality for own in distances for modality in own)
    return {modality: max(own[modality] for own in distances if modality in own) for modality in modalities}


def _mean_diagnostics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: np.mean([row[name] for row in rows], axis=0).round(5).tolist() for name in rows[0]}
