"""p-values of resamplings: from resampled differences, adjusted for their number, and written where they are a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PValue:
    """A p-value, in JSON an object of both.

    Attributes:
        value: 0 to 1; NaN where the comparison is undefined.
        is_bound: R resamples tell no p below ``2 / (R + 1)`` apart. Where none lies on the other side of zero, p is this
            or less: ``p ≤ value``.
    """

    value: float
    is_bound: bool = False

    @property
    def is_significant(self) -> bool:
        """Below :data:`SIGNIFICANT`; NaN is not."""
        return self.value < SIGNIFICANT

    def __str__(self) -> str:
        """``p 0.012``, ``p ≤ 0.002``, ``p undefined``: three decimals, or one digit below 0.001; a bound is rounded up."""
        if math.isnan(self.value):
            return "p undefined"
        decimals = 3 if self.value >= 0.001 or self.value == 0 else -math.floor(math.log10(self.value))
        if not self.is_bound:
            return f"p {self.value:.{decimals}f}"
        # 0.003 is a little above three thousandths in binary, and is not to become 0.004.
        return f"p ≤ {math.ceil(self.value * 10**decimals - 1e-9) / 10**decimals:.{decimals}f}"


def two_sided_p(differences: np.ndarray) -> PValue:
    """p-value of a difference being 0, from its resampled values ``(R,)``.

    Twice the smaller share of resamples on either side of zero, with one added to each count so that p is never 0. With a
    count of none it is a bound.
    """
    fewer = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    return PValue(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)), fewer == 0)


def adjusted_p(p_values: Sequence[PValue]) -> list[PValue]:
    """p-values of one table, adjusted for their number (Benjamini and Hochberg): one policy for every command.

    With the m p-values in rising order, the one at rank i becomes ``min_{j ≥ i} m / j · p_(j)``. This grows with every p, so
    it is a bound where it would be smaller, were the p-values that are bounds smaller.

    One that is NaN, of a comparison that is undefined, stays NaN and does not count.
    """
    adjusted = _adjust([p.value for p in p_values])
    least = _adjust([0.0 if p.is_bound else p.value for p in p_values])
    return [PValue(value, low < value) for value, low in zip(adjusted, least, strict=True)]


def _adjust(values: Sequence[float]) -> list[float]:
    from scipy.stats import false_discovery_control

    given = np.array(values, dtype=np.float64)
    known = ~np.isnan(given)
    if known.any():
        given[known] = false_discovery_control(given[known])
    return [float(p) for p in given]
