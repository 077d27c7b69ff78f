"""Numbers that an option may have, as intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_mer.errors import UserError


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``, never infinity. ``with_low``, ``with_high``: whether an end is in it."""

    low: float = 0
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.with_low else self.low < value
        below = value <= self.high if self.with_high and self.high < math.inf else value < self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be {'at least' if self.with_low else 'above'} {self.low}"
        return f"lie in {'[' if self.with_low else '('}{self.low}, {self.high}{']' if self.with_high else ')'}"


NOT_NEGATIVE = Interval()
POSITIVE = Interval(with_low=False)
CHANCE = Interval(0, 1, with_high=False)
"""Of dropping something: at 1 nothing would be left to learn from."""
SEED = Interval(0, 2**32 - 1)
"""What NumPy takes."""


def check_bounds(options: Any, bounds: Mapping[str, Interval]) -> None:
    """Refuse numbers outside of their interval; None is no number.

    Raises:
        UserError: naming the option, its value and the interval.
    """
    for name, interval in bounds.items():
        value = getattr(options, name)
        if value is not None and value not in interval:
            raise UserError(f"{name}: {value!r}; it must {interval}")
