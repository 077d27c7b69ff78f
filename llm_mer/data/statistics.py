"""Feature statistics, fitted on the training split only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CLIP = 10.0
"""Normalised values are clipped to this many standard deviations, so one corrupt frame cannot dominate a batch."""


@dataclass
class FeatureStatistics:
    """Mean and standard deviation of each feature over all training frames: ``mean, std (D,)`` float32."""

    mean: np.ndarray
    std: np.ndarray

    def apply(self, features: np.ndarray) -> np.ndarray:
        """``clip((x − mean) / std, ±10)`` for ``(T, D)``; a constant feature (std 0) becomes 0."""
        scale = np.where(self.std > 1e-8, self.std, np.inf)
        return np.clip((features - self.mean) / scale, -CLIP, CLIP).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {"mean": [float(v) for v in self.mean], "std": [float(v) for v in self.std]}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> FeatureStatistics:
        """Read :meth:`to_dict` back."""
        return cls(np.asarray(entry["mean"], dtype=np.float32), np.asarray(entry["std"], dtype=np.float32))


def normalise_by_own_steps(features: np.ndarray) -> np.ndarray:
    """``clip((x - mean) / std, ±10)`` of ``(T, D)`` over its own ``T`` steps.

    Raises:
        ValueError: fewer than two steps, of which nothing would be left.
    """
    if features.shape[0] < 2:
        raise ValueError(f"{features.shape[0]} step; normalisation by utterance needs two or more")
    return FeatureStatistics(features.mean(axis=0), features.std(axis=0)).apply(features)


class RunningStatistics:
    """Mean and variance over a stream of ``(T, D)`` blocks in float64 (Chan's parallel update)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | None = None
        self.squares: np.ndarray | None = None

    def update(self, block: np.ndarray) -> None:
        """Add one block."""
        if block.shape[0] == 0:
            return
        data = block.astype(np.float64)
        mean, squares, count = data.mean(axis=0), ((data - data.mean(axis=0)) ** 2).sum(axis=0), data.shape[0]
        if self.mean is None or self.squares is None:
            self.mean, self.squares, self.count = mean, squares, count
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def result(self) -> FeatureStatistics | None:
        """The statistics so far (population standard deviation), None before the first frame."""
        if self.mean is None or self.squares is None:
            return None
        std = np.sqrt(self.squares / self.count)
        return FeatureStatistics(self.mean.astype(np.float32), std.astype(np.float32))
