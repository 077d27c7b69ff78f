"""Mean and standard deviation over runs that differ by their seed only, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEEDS_FILE = "seeds.json"


@dataclass
class Spread:
    """A value over seeds. ``std`` is the sample standard deviation (n - 1), None for one seed; both are None where a
    seed has no value."""

    mean: float | None
    std: float | None
    values: list[float | None]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """The mean and standard deviation of ``values``; what is no finite number counts as no value."""
        known = [float(v) for v in values if v is not None and math.isfinite(v)]
        kept = [v if v is not None and math.isfinite(v) else None for v in values]
        if not known or len(known) != len(kept):
            return cls(None, None, kept)
        mean = math.fsum(known) / len(known)
        std = None
        if len(known) > 1:
            std = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
        return cls(mean, std, kept)

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


def metric_table(seeds: Sequence[int], metrics: dict[str, Spread]) -> str:
    """One metric a line: mean ± std, then each seed's value."""
    width = max(map(len, metrics), default=0)
    lines = [f"{'':<{width}}  {'mean ± std':<15}  " + "  ".join(f"{seed:>7}" for seed in seeds)]
    for name, spread in metrics.items():
        each = "  ".join(f"{'–' if value is None else f'{value:.3f}':>7}" for value in spread.values)
        lines.append(f"{name:<{width}}  {spread!s:<15}  {each}")
    return "\n".join(lines)


def as_plain(metrics: dict[str, Spread]) -> dict[str, Any]:
    """For JSON."""
    return {name: asdict(spread) for name, spread in metrics.items()}
