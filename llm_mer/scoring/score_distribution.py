"""A score as a distribution over every admissible decimal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class ScoreDistribution:
    """Probabilities over a rising grid of scores.

    Attributes:
        grid: ``(G,)`` admissible scores. probabilities: ``(B, G)``, each row summing to 1.
    """

    grid: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        self.grid = np.asarray(self.grid, dtype=np.float64)
        total = np.asarray(self.probabilities, dtype=np.float64)
        if total.shape[1] != len(self.grid):
            raise ValueError(f"{len(self.grid)} admissible scores, {total.shape[1]} answers were given")
        self.probabilities = total / total.sum(axis=1, keepdims=True)

    @property
    def mean(self) -> np.ndarray:
        """``(B,)`` expectation; the best answer under squared error."""
        return np.asarray(self.probabilities @ self.grid)

    @property
    def median(self) -> np.ndarray:
        """``(B,)`` smallest score with at least half the mass at or below it; the best under absolute error."""
        return self.quantile(0.5)

    @property
    def mode(self) -> np.ndarray:
        """``(B,)`` most probable score; of equals, the lowest."""
        return np.asarray(self.grid[self.probabilities.argmax(axis=1)])

    def quantile(self, level: float) -> np.ndarray:
        """``(B,)`` smallest score whose cumulative probability reaches ``level`` (to within rounding)."""
        reached = self.probabilities.cumsum(axis=1) >= level - 1e-12
        return np.asarray(self.grid[reached.argmax(axis=1)])

    def interval(self, coverage: float = 0.8) -> np.ndarray:
        """``(B, 2)`` central interval: the quantiles that leave half of the rest on either side."""
        tail = (1.0 - coverage) / 2
        return np.stack([self.quantile(tail), self.quantile(1.0 - tail)], axis=1)
