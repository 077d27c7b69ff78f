"""Intervals of options: which ends belong to them, and how they are told."""

from __future__ import annotations

import math

import pytest

from llm_mer.training.bounds import CHANCE, NOT_NEGATIVE, POSITIVE, SEED, Interval


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "told"),
    [
        (CHANCE, (0, 0.5, 0.999), (-0.1, 1, math.nan), "lie in [0, 1)"),
        (POSITIVE, (1e-9, 1e9), (0, -1, math.inf, math.nan), "be above 0"),
        (NOT_NEGATIVE, (0, 1e9), (-1e-9, math.inf, math.nan), "be at least 0"),
        (SEED, (0, 2**32 - 1), (-1, 2**32), "lie in [0, 4294967295]"),
        (Interval(-1, 1, with_low=False), (0, 1), (-1, 1.1), "lie in (-1, 1]"),
    ],
    ids=str,
)
def test_a_number_is_in_an_interval_or_not_and_its_ends_are_told(
    interval: Interval, inside: tuple[float, ...], outside: tuple[float, ...], told: str
) -> None:
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == told
