"""Bootstrap intervals and paired comparisons of metrics, all resamples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_mer.evaluation.metrics import class_indices
from llm_mer.prompting.tasks import Task

BLOCK = 250
"""Resamples handled together; bounds memory to ``BLOCK × n`` numbers."""

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Truth and prediction ``(R, n)`` to one value a row ``(R,)``."""


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Share of equal entries."""
    return np.asarray((truth == predicted).mean(axis=1))


def _per_class(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, truths and predictions of each class: three ``(R, C)``."""
    classes = np.unique(truth)
    hits = np.stack([((truth == c) & (predicted == c)).sum(axis=1) for c in classes], axis=1)
    true = np.stack([(truth == c).sum(axis=1) for c in classes], axis=1)
    guessed = np.stack([(predicted == c).sum(axis=1) for c in classes], axis=1)
    return hits, true, guessed


def weighted_f1(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """``Σ_c n_c / n · 2 hits_c / (n_c + m_c)`` with ``n_c`` truths and ``m_c`` predictions of class c."""
    hits, true, guessed = _per_class(truth, predicted)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    return np.asarray((f1 * true).sum(axis=1) / truth.shape[1])


def mean_recall(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean recall over the classes present in each row (IEMOCAP's UA)."""
    hits, true, _ = _per_class(truth, predicted)
    present = true > 0
    return np.asarray(np.where(present, hits / np.maximum(true, 1), 0.0).sum(axis=1) / present.sum(axis=1))


def one_vs_all_accuracy(num_classes: int) -> Statistic:
    """LPGNet's accuracy, the mean over classes of *is it this class or not*: a wrong answer misses two classes of C, an
    unparseable one misses one."""

    def statistic(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        missed = np.where(truth == predicted, 0, np.where(predicted < 0, 1, 2))
        return np.asarray(1 - missed.mean(axis=1) / num_classes)

    return statistic


def mean_absolute_error(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean of ``|truth − predicted|``."""
    return np.asarray(np.abs(truth - predicted).mean(axis=1))


def correlation(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson's r; 0 where either is constant."""
    x, y = truth - truth.mean(axis=1, keepdims=True), predicted - predicted.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.asarray(np.where(scale > 1e-12, (x * y).sum(axis=1) / np.maximum(scale, 1e-12), 0.0))


def root_mean_square_error(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Root of the mean of ``(truth − predicted)²``."""
    return np.asarray(np.sqrt(((truth - predicted) ** 2).mean(axis=1)))


def concordance(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Lin's concordance correlation; 0 where neither side varies."""
    x, y = truth.mean(axis=1), predicted.mean(axis=1)
    covariance = ((truth - x[:, None]) * (predicted - y[:, None])).mean(axis=1)
    scale = truth.var(axis=1) + predicted.var(axis=1) + (x - y) ** 2
    return np.asarray(np.where(scale > 1e-12, 2 * covariance / np.maximum(scale, 1e-12), 0.0))


def statistics_of(task: Task) -> dict[str, Statistic]:
    """The metrics of a task that have an interval: the usual two, and the convention's own headline metric."""
    if task.kind == "regression":
        scores: dict[str, Statistic] = {"mae": mean_absolute_error, "corr": correlation}
        if task.metrics == "plain":
            scores |= {"rmse": root_mean_square_error, "ccc": concordance}
        return scores
    found: dict[str, Statistic] = {"accuracy": accuracy, "weighted_f1": weighted_f1}
    if task.metrics == "iemocap":
        found |= {"ua": mean_recall, "ova_accuracy": one_vs_all_accuracy(task.num_classes)}
    return found


def as_arrays(task: Task, truth: Sequence[Any], *systems: Sequence[Any]) -> list[np.ndarray]:
    """Truth and predictions as arrays: class indices (−1 unparseable), or scores clipped as the convention says."""
    if task.kind == "classification":
        return [class_indices(task, list(values)) for values in (truth, *systems)]
    read = np.array([all(system[i] is not None for system in systems) for i in range(len(truth))])
    arrays = [np.array([float(v) for v, r in zip(values, read, strict=True) if r]) for values in (truth, *systems)]
    return [np.clip(a, -1.0, 1.0) for a in arrays] if task.metrics == "sims" else arrays


def resample(statistic: Statistic, truth: np.ndarray, predicted: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The statistic over resampled rows: ``(resamples,)``. The same seed and size draw the same rows."""
    generator = np.random.default_rng(seed)
    values = []
    for start in range(0, resamples, BLOCK):
        rows = generator.integers(0, len(truth), (min(BLOCK, resamples - start), len(truth)))
        values.append(statistic(truth[rows], predicted[rows]))
    return np.concatenate(values)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of resampled values ``(R,)``."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def clustered_mean_interval(values: np.ndarray, clusters: Sequence[str], resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values (N,)`` when whole clusters are drawn with replacement.

    ``Σ_drawn sum_c / Σ_drawn n_c``: the mean over utterances, as many clusters drawn as there are.
    """
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, BLOCK):
        drawn = generator.integers(0, len(names), (min(BLOCK, resamples - start), len(names)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return percentile_interval(np.concatenate(means))


def two_sided_p(differences: np.ndarray) -> float:
    """p-value of a difference being 0, from its resampled values ``(R,)``.

    Twice the smaller share of resamples on either side of zero, with one added to each count so that p is never 0.
    """
    below, above = ((np.sum(side) + 1) / (len(differences) + 1) for side in (differences <= 0, differences >= 0))
    return float(min(1.0, 2 * min(below, above)))


def metric_intervals(
    task: Task, truth: Sequence[Any], predicted: Sequence[Any], resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of :func:`statistics_of` a task; empty when nothing could be read."""
    true, guess = as_arrays(task, truth, predicted)
    if not len(true):
        return {}
    return {
        name: percentile_interval(resample(statistic, true, guess, resamples, seed))
        for name, statistic in statistics_of(task).items()
    }


def paired_difference(
    task: Task, metric: str, truth: Sequence[Any], first: Sequence[Any], second: Sequence[Any], resamples: int, seed: int
) -> tuple[float, tuple[float, float], float]:
    """``metric(first) − metric(second)``, its 95 % interval and two-sided p-value, rows resampled in pairs."""
    true, one, two = as_arrays(task, truth, first, second)
    statistic = statistics_of(task)[metric]
    difference = float(statistic(true[None], one[None])[0] - statistic(true[None], two[None])[0])
    spread = resample(statistic, true, one, resamples, seed) - resample(statistic, true, two, resamples, seed)
    return difference, percentile_interval(spread), two_sided_p(spread)


def paired_difference_over_seeds(
    task: Task,
    metric: str,
    truth: Sequence[Any],
    first: Sequence[Sequence[Any]],
    second: Sequence[Sequence[Any]] | None,
    resamples: int,
    seed: int,
) -> tuple[float, tuple[float, float], float]:
    """:func:`paired_difference` of two systems trained with several seeds each, ``first[seed][sample]``.

    Utterances are resampled, the same for every seed and both systems, and the metric is averaged over seeds: seeds share
    their utterances, so pooling all answers would pretend to more data than there is. Without ``second`` the interval is
    of the first system's own mean, and p is 1.
    """
    statistic = statistics_of(task)[metric]

    def averaged(systems: Sequence[Sequence[Any]]) -> tuple[float, np.ndarray]:
        points, spreads = [], []
        for answers in systems:
            true, guess = as_arrays(task, truth, answers)
            points.append(float(statistic(true[None], guess[None])[0]))
            spreads.append(resample(statistic, true, guess, resamples, seed))
        return float(np.mean(points)), np.mean(spreads, axis=0)

    value, spread = averaged(first)
    if second is None:
        return value, percentile_interval(spread), 1.0
    other, other_spread = averaged(second)
    spread = spread - other_spread
    return value - other, percentile_interval(spread), two_sided_p(spread)
