"""p-values of resamplings: which are bounds, what is left of that when they are adjusted, and how they are written."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from llm_mer.evaluation.p_values import PValue, adjusted_p, two_sided_p


def values(p_values: list[PValue]) -> list[float]:
    return [p.value for p in p_values]


def benjamini_and_hochberg(p_values: list[float]) -> list[float]:
    """By the definition: the smallest rate of false discoveries at which each is one."""
    m = len(p_values)
    return [min(1.0, *(m / sum(other <= q for other in p_values) * q for q in p_values if q >= p)) for p in p_values]


def test_no_resample_on_the_other_side_of_zero_is_a_bound_and_one_there_or_at_zero_is_none() -> None:
    far = np.linspace(0.1, 0.5, 1000)
    assert two_sided_p(far) == two_sided_p(-far) == PValue(2 / 1001, is_bound=True)
    for other in (-0.1, 0.0):
        assert two_sided_p(np.append(far[1:], other)) == PValue(4 / 1001)
    assert two_sided_p(np.zeros(10)) == PValue(1.0)
    assert two_sided_p(np.array([0.3])) == PValue(1.0, is_bound=True)  # one resample tells nothing


def test_p_values_of_a_table_are_those_of_benjamini_and_hochberg() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        given = (random.integers(1, 200, size) / 200).tolist()
        assert values(adjusted_p([PValue(p) for p in given])) == pytest.approx(benjamini_and_hochberg(given))
    assert adjusted_p([]) == []


def test_one_that_is_undefined_stays_so_and_does_not_count() -> None:
    given = [PValue(0.01), PValue(math.nan), PValue(0.04)]
    adjusted = adjusted_p(given)
    assert adjusted[::2] == adjusted_p(given[::2])
    assert math.isnan(adjusted[1].value)
    assert math.isnan(adjusted_p([PValue(math.nan)])[0].value)


def test_an_adjusted_p_is_a_bound_where_smaller_values_of_the_bounds_would_make_it_smaller_and_only_there() -> None:
    least = 2 / 1001
    assert adjusted_p([PValue(least, True), PValue(0.03)]) == [PValue(2 * least, True), PValue(0.03)]
    both = adjusted_p([PValue(least, True), PValue(least, True), PValue(0.9)])
    assert both == [PValue(1.5 * least, True), PValue(1.5 * least, True), PValue(0.9)]
    # A bound of few resamples may hide a p below the other's, which then is at a higher rank.
    assert adjusted_p([PValue(0.2, True), PValue(0.005)]) == [PValue(0.2, True), PValue(0.01, True)]
    for given in product([PValue(0.01, True), PValue(0.02), PValue(0.2, True), PValue(0.5)], repeat=3):
        found = adjusted_p(list(given))
        for share in (0.0, 0.3, 0.999):
            truth = adjusted_p([PValue(p.value * share) if p.is_bound else p for p in given])
            for claimed, real in zip(found, truth, strict=True):
                assert real.value <= claimed.value + 1e-12
                assert claimed.is_bound or real.value == pytest.approx(claimed.value)


@pytest.mark.parametrize(
    ("p", "written"),
    [
        (PValue(0.0123), "p 0.012"),
        (PValue(1.0), "p 1.000"),
        (PValue(2 / 1001, True), "p ≤ 0.002"),
        (PValue(0.003, True), "p ≤ 0.003"),
        (PValue(0.0031, True), "p ≤ 0.004"),  # 0.003 would be more than is known
        (PValue(2 / 10001, True), "p ≤ 0.0002"),
        (PValue(0.00062, True), "p ≤ 0.0007"),
        (PValue(0.00062), "p 0.0006"),
        (PValue(math.nan), "p undefined"),
    ],
)
def test_a_bound_is_written_as_one_and_never_rounded_below_what_is_known(p: PValue, written: str) -> None:
    assert str(p) == written


def test_what_is_undefined_or_at_the_limit_is_not_significant() -> None:
    assert [PValue(p).is_significant for p in (0.0499, 0.05, math.nan)] == [True, False, False]
    assert PValue(2 / 1001, True).is_significant
