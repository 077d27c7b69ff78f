"""How a metric falls as utterances are damaged more and more, and the area under that curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm_mer.evaluation.rows import Area
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.features.corruption import CORRUPTIONS

if TYPE_CHECKING:
    from llm_mer.evaluation.conditions import Condition
    from llm_mer.evaluation.rows import Row


@dataclass(frozen=True)
class Point:
    """A metric at one amount; ``amount`` is None for undamaged utterances where no amount means none."""

    amount: float | None
    value: float
    interval: tuple[float, float]
    baseline: float


def curve(
    rows: Sequence[Row], conditions: Sequence[Condition], kind: str, task: str, language: str, metric: str, as_is: str
) -> list[Point]:
    """The points of one kind of damage over rising amounts, those as they are among them.

    Undamaged utterances stand first: at a rate of 0, or without an amount for a kind that has no zero (decibels).
    """
    amounts = {c.name: c.amount for c in conditions if c.kind == kind}
    start = 0.0 if CORRUPTIONS[kind].is_rate else None
    found = []
    for row in rows:
        if (row.task, row.language, row.subset) != (task, language, EVERYTHING) or metric not in row.intervals:
            continue
        if row.condition in amounts or row.condition == as_is:
            amount = amounts.get(row.condition, start)
            low, high = row.intervals[metric]
            found.append(Point(amount, row.metrics[metric], (low, high), row.baseline.get(metric, float("nan"))))
    return sorted(found, key=lambda point: -np.inf if point.amount is None else point.amount)


def area_under(points: Sequence[Point]) -> tuple[float, float] | None:
    """``(area, area / span)`` over the points with an amount; None for fewer than two damaged amounts."""
    known = [(p.amount, p.value) for p in points if p.amount is not None]
    if len([amount for amount, _ in known if amount != 0]) < 2:
        return None
    x, y = np.array(known).T
    area = float(np.sum(np.diff(x) * (y[:-1] + y[1:]) / 2))
    return area, area / float(x[-1] - x[0])


def areas(rows: Sequence[Row], conditions: Sequence[Condition], as_is: str) -> list[Area]:
    """The area of every kind with several amounts, for each task, language and metric with an interval."""
    found = []
    for kind in dict.fromkeys(c.kind for c in conditions if c.kind in CORRUPTIONS):
        all_utterances = [row for row in rows if row.condition == as_is and row.subset == EVERYTHING]
        for row in all_utterances:
            for metric in row.intervals:
                points = curve(rows, conditions, kind, row.task, row.language, metric, as_is)
                under = area_under(points)
                if under is not None:
                    amounts = [p.amount for p in points if p.amount is not None]
                    found.append(Area(kind, row.task, row.language, metric, amounts, *under))
    return found
