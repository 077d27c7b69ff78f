"""How far an utterance's features are from those a model was trained on.

A model answers anything with confidence. Whether features are like the training data is asked of their mean over time ``x``,
each feature divided by its standard deviation over the training utterances, by a Mahalanobis distance:

    d(x)² = 1/D (x − μ)ᵀ Σ⁻¹ (x − μ),    Σ = V diag(λ) Vᵀ + λ_rest (I − V Vᵀ)

``Σ`` is the covariance over the training utterances, shrunk as Ledoit and Wolf do (2004, *A well-conditioned estimator for
large-dimensional covariance matrices*); of its directions the :data:`DIRECTIONS` widest are kept and the others share their
mean variance. What is told is ``d(x)`` divided by the distance within which 99 % of the utterances of the validation split
lie: beyond 1, an utterance is farther from the training data than nearly all that the model was chosen on.

Whether features were normalised makes no difference to it, as long as the same was done to each utterance.
``benchmarks/training_distance.py`` compares it with others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mer.data.dataset import MerDataset
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError

DIRECTIONS = 32
MOST_UTTERANCES = 1000
"""Utterances of a split that are looked at, evenly spaced over it."""
FEWEST_UTTERANCES, FEWEST_HELD_OUT = 80, 20
"""From fewer training utterances nothing is estimated, and from fewer others no limit: both would call new ones far."""
WITHIN = 0.99
"""Share of the held-out utterances that lie within a distance of 1."""


@dataclass
class TrainingRange:
    """The training utterances of one modality.

    Attributes:
        mean, scale: ``μ (D,)`` of the features as they are, and what they are divided by; infinite for a constant one, which
            counts for nothing.
        directions: ``V (D, K)``. variances: ``λ (K,)``. rest: ``λ_rest``.
        limit: the distance ``d`` that is told as 1. utterances: how many it was estimated from.
    """

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float
    limit: float = 1.0
    utterances: int = 0

    @classmethod
    def fit(cls, training: np.ndarray, held_out: np.ndarray) -> TrainingRange | None:
        """From means over time, ``(n, D)`` of training utterances and ``(m, D)`` of others.

        Returns:
            None where there are too few, or nothing varies.
        """
        if len(training) < FEWEST_UTTERANCES or len(held_out) < FEWEST_HELD_OUT:
            return None
        from sklearn.covariance import ledoit_wolf_shrinkage

        training = training.astype(np.float64)
        mean, deviation = training.mean(axis=0), training.std(axis=0)
        varies = deviation > 1e-8
        if not varies.any():
            return None
        scale = np.where(varies, deviation, np.inf)
        standard = ((training - mean) / scale)[:, varies]
        count, size = standard.shape
        shrinkage = float(ledoit_wolf_shrinkage(standard, assume_centered=True))
        _, singular, right = np.linalg.svd(standard, full_matrices=False)
        average = float((singular**2).sum() / count / size)  # tr(S) / D, which shrinking keeps
        kept = min(DIRECTIONS, len(singular), size)
        variances = (1 - shrinkage) * singular[:kept] ** 2 / count + shrinkage * average
        rest = (average * size - float(variances.sum())) / max(size - kept, 1)
        # Nothing may be left (fewer utterances than directions, no shrinkage); less would turn rounding into distance.
        floor = 1e-3 * average
        directions = np.zeros((len(mean), kept))
        directions[varies] = right[:kept].T
        found = cls(mean, scale, directions, np.maximum(variances, floor), max(rest, floor), 1.0, count)
        distances = np.array([found.distance(row[None]) for row in held_out.astype(np.float64)])
        found.limit = max(float(np.quantile(distances, WITHIN)), 1e-6)
        return found

    def distance(self, features: np.ndarray) -> float:
        """``d(x)`` of features ``(T, D)`` in limits: beyond 1, they are farther than nearly all held-out utterances."""
        centred = (features.mean(axis=0, dtype=np.float64) - self.mean) / self.scale
        along = centred @ self.directions
        inside = float((along**2 / self.variances).sum())
        outside = float(((centred - self.directions @ along) ** 2).sum()) / self.rest
        return float(np.sqrt((inside + outside) / np.isfinite(self.scale).sum())) / self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, six digits; null for an infinite scale."""
        return {
            "mean": _rounded(self.mean),
            "scale": [v if np.isfinite(v) else None for v in _rounded(self.scale)],
            "directions": [_rounded(column) for column in self.directions.T],
            "variances": _rounded(self.variances),
            "rest": self.rest,
            "limit": self.limit,
            "utterances": self.utterances,
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any], where: str = "training_ranges") -> TrainingRange:
        """Read :meth:`to_dict` back.

        Raises:
            UserError: numbers that are missing, or of other sizes than one another.
        """
        try:
            mean = np.asarray(entry["mean"], dtype=np.float64)
            scale = np.array([np.inf if v is None else v for v in entry["scale"]], dtype=np.float64)
            directions = np.asarray(entry["directions"], dtype=np.float64).T
            variances = np.asarray(entry["variances"], dtype=np.float64)
            rest, limit, count = float(entry["rest"]), float(entry["limit"]), int(entry["utterances"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: damaged: {error}") from None
        fits = mean.shape == scale.shape and directions.shape == (len(mean), len(variances))
        if not fits or not min(variances.min(initial=np.inf), rest, limit) > 0:
            raise UserError(f"{where}: damaged: sizes {mean.shape}, {scale.shape}, {directions.shape}, {variances.shape}")
        return cls(mean, scale, directions, variances, rest, limit, count)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def fit_training_ranges(
    train: MerDataset, held_out: MerDataset | None, modalities: Iterable[str]
) -> dict[str, TrainingRange]:
    """The range of each modality that enough training utterances have.

    Without ``held_out`` utterances of their own, or with fewer than :data:`FEWEST_HELD_OUT` of a modality, every fifth of
    the training utterances is held out in their place.
    """
    chosen, found = list(modalities), {}
    training = _collect_means(train, chosen)
    others: dict[str, list[np.ndarray]] = {} if held_out is None else _collect_means(held_out, chosen)
    for modality in chosen:
        own, other = training[modality], others.get(modality, [])
        if len(other) < FEWEST_HELD_OUT:
            own, other = [x for i, x in enumerate(own) if i % 5], own[::5]
        fitted = TrainingRange.fit(np.array(own), np.array(other))
        if fitted is not None:
            found[modality] = fitted
    return found


def _collect_means(dataset: MerDataset, modalities: list[str]) -> dict[str, list[np.ndarray]]:
    """Means over time ``(D,)`` of each modality, of evenly spaced utterances that have it."""
    step = -(-len(dataset.rows) // MOST_UTTERANCES) or 1
    found: dict[str, list[np.ndarray]] = {modality: [] for modality in modalities}
    for row in dataset.rows[::step]:
        utterance = dataset.utterance(row)
        for modality in modalities:
            features = getattr(utterance, FEATURE_COLUMNS[modality])
            if features is not None:
                found[modality].append(features.mean(axis=0, dtype=np.float64))
    return found
