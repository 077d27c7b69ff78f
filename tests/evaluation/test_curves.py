"""Curves over amounts of damage and the area under them, on cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llm_mer.evaluation.conditions import AS_IS, Condition
from llm_mer.evaluation.curves import Point, area_under, areas, curve
from llm_mer.evaluation.rows import Row


def row(condition: str, value: float, subset: str = "all", language: str = "en") -> Row:
    return Row(
        condition, "emotion", language, subset, 9, 0.0, {"accuracy": value}, {"accuracy": (value, value)}, {"accuracy": 0.2}
    )


MISSING = [Condition(f"missing rate {r}", "missing", amount=r) for r in (0.5, 0.2)]
NOISE = [Condition(f"audio at {d} dB", "audio_snr", amount=d) for d in (20.0, 0.0, 10.0)]


def test_a_curve_of_rates_begins_as_is_at_zero_and_rises() -> None:
    rows = [row(AS_IS, 0.9), row("missing rate 0.5", 0.3), row("missing rate 0.2", 0.7), row("missing rate 0.2", 0.1, "x")]
    points = curve(rows, MISSING, "missing", "emotion", "en", "accuracy", AS_IS)
    assert [(p.amount, p.value) for p in points] == [(0.0, 0.9), (0.2, 0.7), (0.5, 0.3)]
    # 0.2 · (0.9 + 0.7) / 2 + 0.3 · (0.7 + 0.3) / 2
    assert area_under(points) == pytest.approx((0.31, 0.62))


def test_a_curve_of_decibels_has_no_place_for_as_is_and_its_area_leaves_it_out() -> None:
    rows = [row(AS_IS, 0.9), *(row(c.name, v) for c, v in zip(NOISE, (0.8, 0.2, 0.6), strict=True))]
    points = curve(rows, NOISE, "audio_snr", "emotion", "en", "accuracy", AS_IS)
    assert [p.amount for p in points] == [None, 0.0, 10.0, 20.0]
    # 10 · (0.2 + 0.6) / 2 + 10 · (0.6 + 0.8) / 2
    assert area_under(points) == pytest.approx((11.0, 0.55))


def test_one_amount_has_no_area() -> None:
    points = [Point(0.0, 0.9, (0, 1), 0.2), Point(0.3, 0.5, (0, 1), 0.2)]
    assert area_under(points) is None
    assert area_under([Point(10.0, 0.5, (0, 1), 0.2)]) is None
    found = areas([row(AS_IS, 0.9), row("missing rate 0.5", 0.3)], MISSING[:1], AS_IS)
    assert found == []


def test_the_area_is_numpys_trapezoid_for_every_language() -> None:
    generator = np.random.default_rng(0)
    rates = [round(0.1 * i, 1) for i in range(1, 11)]
    conditions = [Condition(f"missing rate {r:g}", "missing", amount=r) for r in rates]
    values = {language: generator.random(11) for language in ("en", "zh")}
    rows = [
        row(name, float(v), language=language)
        for language in values
        for name, v in zip([AS_IS, *(c.name for c in conditions)], values[language], strict=True)
    ]
    found = {area.language: area for area in areas(rows, conditions, AS_IS)}
    for language, y in values.items():
        assert found[language].area == pytest.approx(np.trapezoid(y, [0.0, *rates]))
        assert found[language].amounts == [0.0, *rates]
