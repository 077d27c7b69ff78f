"""Metrics of the field with their exact conventions; scikit-learn and scipy underneath, only binning and rules are ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import f1_score, precision_recall_fscore_support, r2_score

from llm_mer.prompting.tasks import Task

ECE_BINS = 15
Metrics = dict[str, float]

HEADLINE_METRICS: dict[str, str] = {
    "classification": "weighted_f1",
    "iemocap": "ua",
    "plain": "ccc",
    "mosi": "corr",
    "sims": "corr",
}
"""The one metric that stands for a task where there is room for one, by the convention of its metrics; higher is better."""

PROPER_SCORES: tuple[str, ...] = ("nll", "brier")
"""Scores of probabilities that the true ones minimise; lower is better."""


LOWER_IS_BETTER: tuple[str, ...] = (*PROPER_SCORES, "ece", "mae", "rmse", "unparseable")
"""Last words of the names of metrics of which less is better; so it is of losses."""


def is_lower_better(name: str) -> bool:
    """Whether less of a metric of an evaluation log is better, e.g. ``eval_loss``, ``sentiment_en_mae``, ``nll``."""
    words = name.removeprefix("eval_").split("_")
    return "loss" in (words[0], words[-1]) or words[-1] in LOWER_IS_BETTER


def headline_metric(task: Task) -> str:
    """The metric by which the best checkpoint of a training is chosen and that tables and plots of one metric show."""
    return HEADLINE_METRICS[task.metrics]


def classification_metrics(
    truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], log_probs: np.ndarray | None = None
) -> Metrics:
    """Metrics of classes.

    Args:
        truth: ``(N,)`` class indices. predicted: ``(N,)`` indices, -1 for an unparseable answer, which is wrong: it counts
            against its true class and is never a member of another. log_probs: ``(N, C)`` natural logs, for calibration.

    Returns:
        ``accuracy``, ``weighted_f1``, ``macro_f1`` (over classes that occur in the truth or the predictions),
        ``f1/<name>``; with probabilities ``nll``, ``brier``, ``ece``.
    """
    labels = list(range(len(names)))
    metrics = {"accuracy": float((truth == predicted).mean())}
    per_class = f1_score(truth, predicted, labels=labels, average=None, zero_division=0.0)
    metrics["weighted_f1"] = float(f1_score(truth, predicted, labels=labels, average="weighted", zero_division=0.0))
    occurring = [i for i in labels if (truth == i).any() or (predicted == i).any()]
    metrics["macro_f1"] = float(per_class[occurring].mean())
    metrics.update({f"f1/{name}": float(value) for name, value in zip(names, per_class, strict=True)})
    if log_probs is not None:
        metrics.update(calibration_metrics(truth, log_probs))
    return metrics


@dataclass(frozen=True)
class ClassScore:
    """One class: ``n`` truths, ``answered`` answers; NaN where a share is of nothing."""

    label: str
    n: int
    answered: int
    precision: float
    recall: float
    f1: float


def class_scores(task: Task, truth: Sequence[Any], predicted: Sequence[Any]) -> list[ClassScore]:
    """Precision, recall and F1 of every class of a task, in its order; an answer of None is of no class."""
    true, guess = class_indices(task, list(truth)), class_indices(task, list(predicted))
    labels = list(range(task.num_classes))
    found = precision_recall_fscore_support(true, guess, labels=labels, average=None, zero_division=np.nan)
    precision, recall, f1, n = (np.asarray(values) for values in found)
    return [
        ClassScore(name, int(n[i]), int((guess == i).sum()), float(precision[i]), float(recall[i]), float(f1[i]))
        for i, name in enumerate(task.label_names)
    ]


def iemocap_metrics(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> Metrics:
    """``wa`` (accuracy), ``ua`` (mean recall of classes in the truth), ``ova_accuracy`` (LPGNet's mean one-vs-all)."""
    recalls = [float((predicted[truth == c] == c).mean()) for c in range(num_classes) if (truth == c).any()]
    one_vs_all = [float(((truth == c) == (predicted == c)).mean()) for c in range(num_classes)]
    return {
        "wa": float((truth == predicted).mean()),
        "ua": float(np.mean(recalls)),
        "ova_accuracy": float(np.mean(one_vs_all)),
    }


def calibration_metrics(truth: np.ndarray, log_probs: np.ndarray) -> Metrics:
    """``nll``; ``brier`` (sum over classes of squared error); ``ece`` over 15 equal-width confidence bins ``(lo, hi]``."""
    log_probs = log_probs - logsumexp(log_probs, axis=1, keepdims=True)
    probabilities = np.exp(log_probs)
    rows = np.arange(len(truth))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = [
        (bins == b).mean() * abs(confidence[bins == b].mean() - correct[bins == b].mean())
        for b in range(ECE_BINS)
        if (bins == b).any()
    ]
    target = np.zeros_like(probabilities)
    target[rows, truth] = 1.0
    return {
        "nll": float(-log_probs[rows, truth].mean()),
        "brier": float(((probabilities - target) ** 2).sum(axis=1).mean()),
        "ece": float(np.sum(gaps)),
    }


def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation; 0 with a warning when either side is constant or has one sample."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        warnings.warn("correlation of a constant is undefined; reported as 0", stacklevel=2)
        return 0.0
    # To a range of 1 first, or the variance of tiny differences underflows to 0.
    return float(np.corrcoef(truth / np.ptp(truth), predicted / np.ptp(predicted))[0, 1])


def concordance(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Lin's concordance correlation (1989), ``2 cov / (var_x + var_y + (mean_x - mean_y)²)``, variances over ``N``.

    0 with a warning where nothing varies on either side and the means are one: 0 / 0.
    """
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    # In units of the largest difference, or the squares of tiny ones underflow to 0.
    low = min(truth.min(), predicted.min())
    unit = max(truth.max(), predicted.max()) - low
    if unit == 0:
        warnings.warn("concordance of one constant with itself is undefined; reported as 0", stacklevel=2)
        return 0.0
    x, y = (truth - low) / unit, (predicted - low) / unit
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def plain_metrics(truth: np.ndarray, predicted: np.ndarray) -> Metrics:
    """Scores of any range, unclipped: ``mae``, ``rmse``, ``corr`` (:func:`pearson`), ``ccc`` (:func:`concordance`)."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    return {
        "mae": float(np.abs(truth - predicted).mean()),
        "rmse": float(np.sqrt(((truth - predicted) ** 2).mean())),
        "corr": pearson(truth, predicted),
        "ccc": concordance(truth, predicted),
    }


def _two_class(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    if len(truth) == 0:
        return 0.0, 0.0
    accuracy = float((truth == predicted).mean())
    return accuracy, float(f1_score(truth, predicted, average="weighted", zero_division=0.0))


def mosi_metrics(truth: np.ndarray, predicted: np.ndarray) -> Metrics:
    """CMU-MOSI and MOSEI, scores in [-3, 3].

    ``mae`` and ``corr`` on unclipped values; ``acc7``: clip both to ±3, round half to even, equal; ``acc5``: ±2;
    ``has0_*``: class is value ≥ 0; ``non0_*``: truths of 0 dropped, class is value > 0, so a predicted 0.0 is negative.
    F1 is support-weighted.
    """
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    metrics = {"mae": float(np.abs(truth - predicted).mean()), "corr": pearson(truth, predicted)}
    for name, bound in (("acc7", 3.0), ("acc5", 2.0)):
        same = np.rint(np.clip(truth, -bound, bound)) == np.rint(np.clip(predicted, -bound, bound))
        metrics[name] = float(same.mean())
    metrics["has0_acc2"], metrics["has0_f1"] = _two_class(truth >= 0, predicted >= 0)
    kept = truth != 0
    metrics["non0_acc2"], metrics["non0_f1"] = _two_class(truth[kept] > 0, predicted[kept] > 0)
    return metrics


def bin_of(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Right-closed bins: index of the bin ``(edges[i-1], edges[i]]``; values are compared to six decimals.

    A score stored as float32 (0.1 is 0.100000001…) must land where its decimal does.
    """
    return np.searchsorted(np.asarray(edges), np.round(np.asarray(values, dtype=np.float64), 6), side="left")


def sims_metrics(truth: np.ndarray, predicted: np.ndarray) -> Metrics:
    """CH-SIMS and SIMS-V2, scores in [-1, 1]; both sides clipped before everything.

    ``acc2``/``f1``: bins (−1.01, 0], (0, 1.01], so zero is negative; ``acc3``: edges ±0.1; ``acc5``: −0.7, −0.1, 0.1, 0.7;
    ``acc2_weak``: samples with |truth| ≤ 0.4; ``r2`` (of constant truths 1 where all are met, else 0), ``mae``, ``corr``.
    """
    truth = np.clip(np.asarray(truth, dtype=np.float64), -1.0, 1.0)
    predicted = np.clip(np.asarray(predicted, dtype=np.float64), -1.0, 1.0)
    metrics = {"mae": float(np.abs(truth - predicted).mean()), "corr": pearson(truth, predicted)}
    metrics["acc2"], metrics["f1"] = _two_class(bin_of(truth, [0.0]), bin_of(predicted, [0.0]))
    metrics["acc3"] = float((bin_of(truth, [-0.1, 0.1]) == bin_of(predicted, [-0.1, 0.1])).mean())
    edges = [-0.7, -0.1, 0.1, 0.7]
    metrics["acc5"] = float((bin_of(truth, edges) == bin_of(predicted, edges)).mean())
    weak = np.round(np.abs(truth), 6) <= 0.4
    metrics["acc2_weak"] = _two_class(bin_of(truth[weak], [0.0]), bin_of(predicted[weak], [0.0]))[0]
    if np.ptp(truth) == 0:  # as scikit-learn means it; its sums of rounded means would divide by 1e-32 instead
        metrics["r2"] = float(len(truth) > 1 and bool((truth == predicted).all()))
    else:
        metrics["r2"] = float(r2_score(truth, predicted))
    return metrics


def interval_coverage(truth: np.ndarray, intervals: np.ndarray) -> float:
    """Share of truths inside their interval ``(N, 2)``, ends included to six decimals."""
    truth, intervals = (np.round(np.asarray(values, dtype=np.float64), 6) for values in (truth, intervals))
    return float(((truth >= intervals[:, 0]) & (truth <= intervals[:, 1])).mean())


SCORE_CONVENTIONS: dict[str, Callable[[np.ndarray, np.ndarray], Metrics]] = {
    "plain": plain_metrics,
    "mosi": mosi_metrics,
    "sims": sims_metrics,
}


def class_indices(task: Task, values: Sequence[Any]) -> np.ndarray:
    """Label names to indices; None, an unparseable answer, is -1."""
    return np.array([-1 if value is None else task.class_index(value) for value in values], dtype=np.int64)


def compute_metrics(
    task: Task,
    truth: Sequence[Any],
    predicted: Sequence[Any],
    log_probs: np.ndarray | None = None,
    intervals: np.ndarray | None = None,
) -> Metrics:
    """All metrics of a task's convention, with ``n`` and ``unparseable_rate``.

    Args:
        truth: label names or scores, all known. predicted: the same, None where an answer could not be read. Unparseable
            classes are wrong answers; unparseable scores are left out of the score metrics, and ``n_scored`` says how many
            were read.
        log_probs: ``(N, C)`` for classes. intervals: ``(N, 2)`` central 80 % intervals for scores → ``coverage80``.

    Raises:
        ValueError: nothing to evaluate.
    """
    if not len(truth):
        raise ValueError(f"task {task.name}: no truth to evaluate against")
    read = np.array([value is not None for value in predicted])
    common = {"n": float(len(truth)), "unparseable_rate": float(1 - read.mean())}
    if task.kind == "classification":
        true, guess = class_indices(task, truth), class_indices(task, predicted)
        metrics = classification_metrics(true, guess, task.label_names, log_probs)
        if task.metrics == "iemocap":
            metrics.update(iemocap_metrics(true, guess, task.num_classes))
        return {**metrics, **common}
    common["n_scored"] = float(read.sum())
    if not read.any():
        return common
    true = np.array([float(t) for t, r in zip(truth, read, strict=True) if r])
    guess = np.array([float(p) for p in predicted if p is not None])
    metrics = SCORE_CONVENTIONS[task.metrics](true, guess)
    if intervals is not None:
        metrics["coverage80"] = interval_coverage(true, np.asarray(intervals)[read])
    return {**metrics, **common}


def majority_baseline(task: Task, truth: Sequence[Any], train_truth: Sequence[Any] | None = None) -> Metrics:
    """What the trivial answer scores on ``truth``: the commonest training class or the training mean (else of ``truth``)."""
    source = list(train_truth) if train_truth else list(truth)
    if task.kind == "classification":
        names, counts = np.unique([str(t) for t in source], return_counts=True)
        answer: Any = str(names[counts.argmax()])
    else:
        answer = float(np.mean([float(t) for t in source]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constant has no correlation; that is the point of it
        return compute_metrics(task, truth, [answer] * len(truth))
