"""What probabilities of answers are worth, with and without the checkpoint's temperature, with clustered intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.metrics import ECE_BINS
from llm_mer.evaluation.resampling import expand, percentile_interval, resampled_means
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.temperature import scale_by_temperature

Interval = tuple[float, float]
LIMITS: dict[str, Interval] = {"nll": (0.0, np.inf), "brier": (0.0, 2.0), "ece": (0.0, 1.0), "crps": (0.0, np.inf)}
"""The least and the greatest value of each metric."""


@dataclass(frozen=True)
class ProbabilityScore:
    """One metric of the probabilities, lower is better.

    Attributes:
        metric: ``nll`` (of the true answer; of a score, of the nearest on its grid), ``brier`` and ``ece`` of classes,
            ``crps`` of scores.
        value, interval: of the answers as they were given; 95 % over :class:`Clusters`.
        uncalibrated, uncalibrated_interval: of the same answers without their temperatures; None where there is none.
        difference_interval: of ``value - uncalibrated``, over the same draws.
    """

    metric: str
    value: float
    interval: Interval
    uncalibrated: float | None = None
    uncalibrated_interval: Interval | None = None
    difference_interval: Interval | None = None

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> ProbabilityScore:
        """Read plain values back."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        return cls(**values)


def answer_arrays(task: Task, predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """``(N, C)`` log-probabilities and ``(N,)`` index of the true answer; of a score, the nearest on the grid."""
    log_probs = np.array([p.log_probabilities for p in predictions], dtype=np.float64)
    log_probs -= logsumexp(log_probs, axis=1, keepdims=True)
    if task.kind == "classification":
        return log_probs, np.array([task.class_index(str(p.truth)) for p in predictions])
    truth = np.array([float(p.truth) for p in predictions if p.truth is not None])
    return log_probs, np.abs(truth[:, None] - np.asarray(task.grid())).argmin(axis=1)


def contributions(task: Task, log_probs: np.ndarray, predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """What each answer adds to a metric, ``(N, K)``: the metric is ``Σ_k |Σ_i a_ik| / N``.

    ``ece`` has a column a bin ``(lo, hi]`` of confidence, and in it confidence less correctness; the others have one column.
    """
    _, truth = answer_arrays(task, predictions)
    rows, probs = np.arange(len(truth)), np.exp(log_probs)
    found = {"nll": -log_probs[rows, truth][:, None]}
    if task.kind == "regression":
        scores = np.array([float(p.truth) for p in predictions if p.truth is not None])
        grid, below = np.asarray(task.grid()), probs.cumsum(axis=1)[:, :-1]
        expected = (probs * np.abs(grid - scores[:, None])).sum(axis=1)
        found["crps"] = (expected - (below * (1 - below) * np.diff(grid)).sum(axis=1))[:, None]
        return found
    target = np.zeros_like(probs)
    target[rows, truth] = 1.0
    found["brier"] = ((probs - target) ** 2).sum(axis=1)[:, None]
    confidence = probs.max(axis=1)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.zeros((len(truth), ECE_BINS))
    gaps[rows, bins] = confidence - (probs.argmax(axis=1) == truth)
    found["ece"] = gaps
    return found


def probability_scores(
    task: Task, predictions: Sequence[Prediction], resamples: int, seed: int, clusters: Clusters | None = None
) -> list[ProbabilityScore]:
    """The scores of predictions that have a truth; none where one has no probabilities (a head's score).

    ``clusters`` are the predictions' own where the caller has them already.
    """
    if not predictions or any(not p.log_probabilities for p in predictions):
        return []
    log_probs, _ = answer_arrays(task, predictions)
    given = contributions(task, log_probs, predictions)
    before = None
    if any(p.temperature is not None for p in predictions):
        inverse = [1.0 / (p.temperature or 1.0) for p in predictions]
        raw = np.stack([scale_by_temperature(row, factor) for row, factor in zip(log_probs, inverse, strict=True)])
        before = contributions(task, raw, predictions)
    units = Clusters.of(predictions) if clusters is None else clusters

    def spread_of(parts: np.ndarray) -> np.ndarray:
        return np.asarray(_metric_of(resampled_means(parts, units, resamples, seed)))

    def widened(spread: np.ndarray, within: Interval) -> Interval:
        return percentile_interval(expand(spread, units.count), within=within)

    scores = []
    for metric, parts in given.items():
        value, spread = float(_metric_of(parts.mean(axis=0))), spread_of(parts)
        score = ProbabilityScore(metric, value, widened(spread, LIMITS[metric]))
        if before is not None:
            raw_spread = spread_of(before[metric])
            score = ProbabilityScore(
                metric,
                value,
                score.interval,
                float(_metric_of(before[metric].mean(axis=0))),
                widened(raw_spread, LIMITS[metric]),
                widened(spread - raw_spread, (-LIMITS[metric][1], LIMITS[metric][1])),
            )
        scores.append(score)
    return scores


def _metric_of(means: np.ndarray) -> np.ndarray:
    """Mean contributions ``(..., K)`` to the metric ``(...)``."""
    return np.asarray(np.abs(means).sum(axis=-1) if means.shape[-1] > 1 else means[..., 0])
