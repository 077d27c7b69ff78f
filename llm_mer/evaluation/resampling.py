"""Bootstrap intervals and paired comparisons of metrics, all resamples at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from llm_mer.evaluation.clusters import FEW, Clusters
from llm_mer.evaluation.metrics import class_indices
from llm_mer.evaluation.p_values import PValue, two_sided_p
from llm_mer.prompting.tasks import Task

BLOCK = 250
"""Resamples handled together; bounds memory to ``BLOCK × n`` numbers."""

Statistic = Callable[..., np.ndarray]
"""Truth and prediction ``(R, n)`` to one value a row ``(R,)``; with weights ``(R, n)``, one truth and prediction ``(1, n)``
serve all rows, and an entry counts as often as its weight says."""


def _mean(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """``Σ_i w_i x_i / Σ_i w_i`` along the last axis: ``(R, n)`` to ``(R,)``."""
    if weights is None:
        return np.asarray(values.mean(axis=1))
    return np.asarray((weights * values).sum(axis=1) / weights.sum(axis=1))


def _count(hits: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """``Σ_i w_i [hit_i]``: ``(R, n)`` to ``(R,)``."""
    return np.asarray((hits if weights is None else weights * hits).sum(axis=1))


def accuracy(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of equal entries."""
    return _mean(truth == predicted, weights)


def _per_class(
    truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, truths and predictions of each class: three ``(R, C)``."""
    classes = np.unique(truth)
    hits = np.stack([_count((truth == c) & (predicted == c), weights) for c in classes], axis=1)
    true = np.stack([_count(truth == c, weights) for c in classes], axis=1)
    guessed = np.stack([_count(predicted == c, weights) for c in classes], axis=1)
    return hits, true, guessed


def weighted_f1(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """``Σ_c n_c / n · 2 hits_c / (n_c + m_c)`` with ``n_c`` truths and ``m_c`` predictions of class c."""
    hits, true, guessed = _per_class(truth, predicted, weights)
    f1 = 2 * hits / np.maximum(true + guessed, 1)
    return np.asarray((f1 * true).sum(axis=1) / true.sum(axis=1))


def mean_recall(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean recall over the classes present in each row (IEMOCAP's UA)."""
    hits, true, _ = _per_class(truth, predicted, weights)
    present = true > 0
    return np.asarray(np.where(present, hits / np.maximum(true, 1), 0.0).sum(axis=1) / present.sum(axis=1))


def one_vs_all_accuracy(num_classes: int) -> Statistic:
    """LPGNet's accuracy, the mean over classes of *is it this class or not*: a wrong answer misses two classes of C, an
    unparseable one misses one."""

    def statistic(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        missed = np.where(truth == predicted, 0, np.where(predicted < 0, 1, 2))
        return np.asarray(1 - _mean(missed, weights) / num_classes)

    return statistic


def mean_absolute_error(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of ``|truth − predicted|``."""
    return _mean(np.abs(truth - predicted), weights)


def correlation(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson's r; 0 where either is constant."""
    x, y = (values - _mean(values, weights)[:, None] for values in (truth, predicted))
    scale = np.sqrt(_count(x**2, weights) * _count(y**2, weights))
    return np.asarray(np.where(scale > 1e-12, _count(x * y, weights) / np.maximum(scale, 1e-12), 0.0))


def root_mean_square_error(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """``√mean((truth − predicted)²)``."""
    return np.sqrt(_mean((truth - predicted) ** 2, weights))


def concordance(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Lin's concordance correlation; 0 where neither side varies."""
    x, y = _mean(truth, weights), _mean(predicted, weights)
    dx, dy = truth - x[:, None], predicted - y[:, None]
    scale = _mean(dx**2, weights) + _mean(dy**2, weights) + (x - y) ** 2
    return np.asarray(np.where(scale > 1e-12, 2 * _mean(dx * dy, weights) / np.maximum(scale, 1e-12), 0.0))


RANGES = {
    **dict.fromkeys(("accuracy", "weighted_f1", "ua", "ova_accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("corr", "ccc"), (-1.0, 1.0)),
    **dict.fromkeys(("mae", "rmse"), (0.0, np.inf)),
}
"""The least and the greatest value of each metric of :func:`statistics_of`."""


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


def readable(task: Task, n: int, *systems: Sequence[Any]) -> np.ndarray:
    """Which of the ``n`` rows are scored: all classes (an unreadable one is wrong), scores that every system has."""
    if task.kind == "classification":
        return np.ones(n, dtype=bool)
    return np.array([all(system[i] is not None for system in systems) for i in range(n)], dtype=bool)


def as_arrays(task: Task, truth: Sequence[Any], *systems: Sequence[Any]) -> list[np.ndarray]:
    """Truth and predictions as arrays: class indices (−1 unparseable), or scores clipped as the convention says."""
    if task.kind == "classification":
        return [class_indices(task, list(values)) for values in (truth, *systems)]
    read = readable(task, len(truth), *systems)
    arrays = [np.array([float(v) for v, r in zip(values, read, strict=True) if r]) for values in (truth, *systems)]
    return [np.clip(a, -1.0, 1.0) for a in arrays] if task.metrics == "sims" else arrays


def resample(
    statistic: Statistic,
    truth: np.ndarray,
    predicted: np.ndarray,
    resamples: int,
    seed: int,
    clusters: Clusters | None = None,
) -> np.ndarray:
    """The statistic over resampled rows: ``(resamples,)``. The same seed and size draw the same rows.

    With ``clusters`` whole dialogues or speakers are drawn, as many as there are, each with all of its rows, and the values
    are spread by :func:`expand`.
    """
    found = _plain_resample(statistic, truth, predicted, resamples, seed, clusters)
    return expand(found, clusters.count) if clusters is not None and clusters.is_grouped else found


def _plain_resample(
    statistic: Statistic,
    truth: np.ndarray,
    predicted: np.ndarray,
    resamples: int,
    seed: int,
    clusters: Clusters | None,
) -> np.ndarray:
    """:func:`resample` before :func:`expand`: differences are taken first, and then expanded."""
    values = []
    if clusters is not None and clusters.is_grouped:
        # How often each unit is drawn is all a statistic needs: a row counts as often as its unit.
        drawn = clusters.draw(resamples, seed)
        for start in range(0, resamples, BLOCK):
            weights = drawn[start : start + BLOCK, clusters.index]
            values.append(statistic(truth[None], predicted[None], weights))
        return np.concatenate(values)
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        rows = generator.integers(0, len(truth), (min(BLOCK, resamples - start), len(truth)))
        values.append(statistic(truth[rows], predicted[rows]))
    return np.concatenate(values)


def expand(values: np.ndarray, units: int) -> np.ndarray:
    """Resampled values ``(R,)``, in their order, spread as far as an interval from few units must reach.

    The percentile interval of G resampled units is too narrow by ``√((G − 1) / G)`` and has the tails of a normal
    distribution where Student's with G − 1 degrees of freedom are due. The value at rank u is replaced by the one at rank
    ``Φ(√(G / (G − 1)) · t⁻¹_{G−1}(u))`` (Hesterberg's expanded percentile interval, *What teachers should know about the
    bootstrap*, 2015), so that plain percentiles of what is returned are the expanded ones.

    With fewer than :data:`~llm_mer.evaluation.clusters.FEW` units no resample lies as far out as that rank (of two units
    there are three resamples): there the value at rank u is ``mean + √(G / (G − 1)) · std · t⁻¹_{G−1}(u)`` of the values,
    the interval of Student's t with the bootstrap's standard error. It may leave the range of a metric; see :data:`RANGES`.
    """
    if units < 2:
        return values
    expanded = np.empty(len(values))
    order = np.argsort(values, kind="stable")
    if units < FEW:
        deviation = np.sqrt(units / (units - 1)) * students_quantiles(len(values), units - 1)
        expanded[order] = values.mean() + values.std() * deviation
    else:
        expanded[order] = np.quantile(values, _expanded_ranks(len(values), units))
    return expanded


@lru_cache(maxsize=64)
def students_quantiles(count: int, degrees: int) -> np.ndarray:
    """``t⁻¹((i + ½) / count)`` of Student's t, ``(count,)``, read-only."""
    from scipy.stats import t

    quantiles: np.ndarray = t.ppf((np.arange(count) + 0.5) / count, degrees)
    quantiles.flags.writeable = False
    return quantiles


@lru_cache(maxsize=64)
def _expanded_ranks(count: int, units: int) -> np.ndarray:
    """``Φ(√(G / (G − 1)) · t⁻¹_{G−1}(u))`` at the ranks of ``count`` values, ``(count,)``, read-only."""
    from scipy.stats import norm

    ranks: np.ndarray = norm.cdf(np.sqrt(units / (units - 1)) * students_quantiles(count, units - 1))
    ranks.flags.writeable = False
    return ranks


def percentile_interval(
    values: np.ndarray, level: float = 0.95, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """The central ``level`` of resampled values ``(R,)``, cut where it leaves what they can be."""
    low, high = np.clip(np.quantile(values, [(1 - level) / 2, (1 + level) / 2]), *within)
    return float(low), float(high)


def resampled_means(values: np.ndarray, clusters: Clusters, resamples: int, seed: int) -> np.ndarray:
    """The means of the columns of ``values`` ``(n, K)`` over drawn units: ``Σ_drawn sum_c / Σ_drawn n_c``, ``(R, K)``."""
    drawn = clusters.draw(resamples, seed)
    sums = np.zeros((clusters.count, values.shape[1]))
    np.add.at(sums, clusters.index, values)
    sizes = drawn @ np.bincount(clusters.index, minlength=clusters.count)
    return np.asarray((drawn @ sums) / sizes[:, None])


def mean_interval(values: np.ndarray, clusters: Clusters, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` ``(n,)`` over drawn units."""
    (spread,) = resampled_means(values[:, None], clusters, resamples, seed).T
    return percentile_interval(expand(spread, clusters.count), within=(float(values.min()), float(values.max())))


def metric_intervals(
    task: Task,
    truth: Sequence[Any],
    predicted: Sequence[Any],
    resamples: int,
    seed: int,
    clusters: Clusters | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of :func:`statistics_of` a task; empty when nothing could be read."""
    read = readable(task, len(truth), predicted)
    true, guess = as_arrays(task, truth, predicted)
    if not len(true):
        return {}
    kept = None if clusters is None else clusters.take(read)
    return {
        name: percentile_interval(resample(statistic, true, guess, resamples, seed, kept), within=RANGES[name])
        for name, statistic in statistics_of(task).items()
    }


def paired_difference(
    task: Task,
    metric: str,
    truth: Sequence[Any],
    first: Sequence[Any],
    second: Sequence[Any],
    resamples: int,
    seed: int,
    clusters: Clusters | None = None,
) -> tuple[float, tuple[float, float], PValue]:
    """``metric(first) − metric(second)``, its 95 % interval and two-sided p-value, rows (or clusters) resampled in pairs."""
    return paired_difference_over_seeds(task, metric, truth, [first], [second], resamples, seed, clusters)


def paired_difference_over_seeds(
    task: Task,
    metric: str,
    truth: Sequence[Any],
    first: Sequence[Sequence[Any]],
    second: Sequence[Sequence[Any]] | None,
    resamples: int,
    seed: int,
    clusters: Clusters | None = None,
) -> tuple[float, tuple[float, float], PValue]:
    """:func:`paired_difference` of two systems trained with several seeds each, ``first[seed][sample]``.

    Two things are random. **Utterances**: they (or their ``clusters``) are resampled, the same for every seed and both
    systems, and the metric is averaged over seeds; seeds share their utterances, so pooling all answers would pretend to
    more data than there is. **Training**: the S values of a system's seeds have the sample standard deviation s, and their
    mean deviates from that of all seeds by ``s / √S`` times a Student's t with S − 1 degrees of freedom, which is added to
    each resample, for each system on its own. One seed says nothing of training, and nothing is added.

    Only rows are scored whose answer could be read in every seed of both systems, so that pairs stay pairs. Where there is
    none, all that is returned is NaN: undefined (:func:`format_estimate`). Without ``second`` the interval is of the first
    system's own mean, and p is 1.
    """
    statistic = statistics_of(task)[metric]
    read = readable(task, len(truth), *first, *(second or ()))
    if not read.any():
        return math.nan, (math.nan, math.nan), PValue(math.nan)
    kept = None if clusters is None else clusters.take(read)
    rows = np.flatnonzero(read).tolist()
    generator = np.random.default_rng([seed, 1])

    def averaged(systems: Sequence[Sequence[Any]]) -> tuple[float, np.ndarray, np.ndarray]:
        points, spreads = [], []
        for answers in systems:
            true, guess = as_arrays(task, [truth[i] for i in rows], [answers[i] for i in rows])
            points.append(float(statistic(true[None], guess[None])[0]))
            spreads.append(_plain_resample(statistic, true, guess, resamples, seed, kept))
        return float(np.mean(points)), np.mean(spreads, axis=0), training_noise(points, resamples, generator)

    value, spread, noise = averaged(first)
    if second is not None:
        other, other_spread, other_noise = averaged(second)
        value, spread, noise = value - other, spread - other_spread, noise - other_noise
    if kept is not None and kept.is_grouped:
        spread = expand(spread, kept.count)
    spread = spread + noise
    # Student's t of two or three seeds reaches far beyond what a metric can be.
    low, high = RANGES[metric]
    least, most = (low, high) if second is None else (low - high, high - low)
    interval = percentile_interval(spread, within=(least, most))
    return value, interval, PValue(1.0) if second is None else two_sided_p(spread)


def format_estimate(value: float, interval: tuple[float, float], sign: str = "") -> str:
    """``0.712 [0.650, 0.770]``; ``undefined`` in the place of what nothing could be computed from.

    ``sign`` is ``+`` for a difference.
    """
    if math.isnan(value):
        return "undefined"
    within = "undefined" if math.isnan(interval[0]) else f"{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}"
    return f"{value:{sign}.3f} [{within}]"


def training_noise(points: Sequence[float], resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How far the mean of S seeds' values may be from that of all seeds: ``s / √S · t_{S−1}``, ``(resamples,)``.

    The quantiles of Student's t in random order instead of draws: its tails are long, and draws of them are noise. Zeros
    for one seed, whose spread is not known.
    """
    if len(points) < 2:
        return np.zeros(resamples)
    quantiles = students_quantiles(resamples, len(points) - 1)
    return generator.permutation(quantiles) * float(np.std(points, ddof=1)) / np.sqrt(len(points))
