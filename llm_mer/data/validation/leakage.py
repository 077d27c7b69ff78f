"""Measuring how well a single feature predicts a label."""

from __future__ import annotations

import numpy as np

COLUMNS_PER_BLOCK = 256
"""Number of features ranked at a time, which limits memory."""
MIN_SAMPLES = 10
"""With fewer utterances of a class, or of the others, separation may be due to chance."""


def class_separation(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best area under the ROC curve of one class against all others, for each single feature.

    ``max_c max(AUC_c, 1 − AUC_c)``, where ``AUC_c`` is Mann and Whitney's ``U / (n_c (n − n_c))`` with ties counted half.
    0.5 is uninformative, 1 separates a class. A feature that orders the classes without overlap separates at least the
    lowest.

    Args:
        features: ``(N, D)`` finite. classes: ``(N,)`` whole numbers; those with fewer than 10 utterances are left out.

    Returns:
        ``(D,)`` areas in [0.5, 1], and ``(D,)`` the class of each. 0.5 and -1 where no class has enough utterances.
    """
    from scipy.stats import rankdata

    count, size = features.shape
    classes_found, numbers = np.unique(classes, return_counts=True)
    usable = (numbers >= MIN_SAMPLES) & (count - numbers >= MIN_SAMPLES)
    classes_found, numbers = classes_found[usable], numbers[usable].astype(np.float64)
    best, best_class = np.full(size, 0.5), np.full(size, -1)
    if not len(classes_found):
        return best, best_class
    members = (classes[None, :] == classes_found[:, None]).astype(np.float64)
    for start in range(0, size, COLUMNS_PER_BLOCK):
        ranks = rankdata(features[:, start : start + COLUMNS_PER_BLOCK], axis=0)
        areas = (members @ ranks - (numbers * (numbers + 1) / 2)[:, None]) / (numbers * (count - numbers))[:, None]
        areas = np.maximum(areas, 1 - areas)
        best[start : start + COLUMNS_PER_BLOCK] = areas.max(axis=0)
        best_class[start : start + COLUMNS_PER_BLOCK] = classes_found[areas.argmax(axis=0)]
    return best, best_class


def score_correlation(features: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The larger of Pearson's and Spearman's ``|r|`` with a score, for each single feature.

    Args:
        features: ``(N, D)`` finite. scores: ``(N,)`` finite.

    Returns:
        ``(D,)`` in [0, 1]; 0 for a constant feature, constant scores, or fewer than 20 utterances.
    """
    from scipy.stats import rankdata

    best = np.zeros(features.shape[1])
    if len(scores) < 2 * MIN_SAMPLES:
        return best
    ranked = rankdata(scores)
    for start in range(0, features.shape[1], COLUMNS_PER_BLOCK):
        block = features[:, start : start + COLUMNS_PER_BLOCK].astype(np.float64)
        found = np.maximum(_correlation(block, scores), _correlation(rankdata(block, axis=0), ranked))
        best[start : start + COLUMNS_PER_BLOCK] = found
    return best


def _correlation(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    centred, other = columns - columns.mean(axis=0), target - target.mean()
    scale = np.sqrt((centred**2).sum(axis=0) * (other**2).sum())
    # Rounding may leave a constant column slightly off its own mean.
    varies = (columns != columns[:1]).any(axis=0) & (scale > 0)
    return np.abs(np.divide(other @ centred, scale, out=np.zeros(columns.shape[1]), where=varies))
