"""Scores of any range: MAE, RMSE, Pearson's r and concordance, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest

from llm_mer.evaluation.metrics import compute_metrics, headline_metric, majority_baseline, plain_metrics
from llm_mer.evaluation.resampling import as_arrays, metric_intervals, statistics_of
from llm_mer.prompting.tasks import Task

TASK = Task.from_dict("valence", {"kind": "regression", "range": [0, 100], "decimals": 0})
TRUTH, ANSWERS = [10, 35, 70, 95, 50, 0], [20, 30, 60, 99, 55, 12]


def mean(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def exact() -> dict[str, float]:
    """In whole numbers and their fractions, without rounding but in the roots."""
    x, y = [Fraction(v) for v in TRUTH], [Fraction(v) for v in ANSWERS]
    covariance = mean([a * b for a, b in zip(x, y, strict=True)]) - mean(x) * mean(y)
    var_x, var_y = (mean([v * v for v in values]) - mean(values) ** 2 for values in (x, y))
    return {
        "mae": float(mean([abs(a - b) for a, b in zip(x, y, strict=True)])),
        "rmse": sqrt(mean([(a - b) ** 2 for a, b in zip(x, y, strict=True)])),
        "corr": float(covariance) / sqrt(var_x * var_y),
        "ccc": float(2 * covariance / (var_x + var_y + (mean(x) - mean(y)) ** 2)),
    }


def test_plain_metrics_equal_exact_fractions() -> None:
    found = plain_metrics(np.array(TRUTH), np.array(ANSWERS))
    assert found == {name: pytest.approx(value, rel=1e-13) for name, value in exact().items()}


def test_the_resampled_statistics_are_the_metrics() -> None:
    true, guess = as_arrays(TASK, TRUTH, ANSWERS)
    for name, statistic in statistics_of(TASK).items():
        assert statistic(true[None], guess[None])[0] == pytest.approx(exact()[name], rel=1e-12)
    assert set(metric_intervals(TASK, TRUTH, ANSWERS, 50, 0)) == {"mae", "rmse", "corr", "ccc"}


@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (1e6, -7.0), (1e-160, 0.0)])
def test_concordance_does_not_depend_on_the_unit(factor: float, shift: float) -> None:
    truth, answers = (np.array(values) * factor + shift for values in (TRUTH, ANSWERS))
    assert plain_metrics(truth, answers)["ccc"] == pytest.approx(exact()["ccc"], rel=1e-9)


def test_concordance_is_one_of_the_same_minus_one_of_the_mirrored_and_falls_with_a_shift() -> None:
    truth = np.array([-1.0, 0.0, 1.0])
    assert plain_metrics(truth, truth)["ccc"] == pytest.approx(1.0)
    assert plain_metrics(truth, -truth)["ccc"] == pytest.approx(-1.0)
    assert plain_metrics(truth, truth + 1)["ccc"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 2 / 3 + 1))


def test_a_constant_has_no_concordance() -> None:
    assert majority_baseline(TASK, TRUTH)["ccc"] == 0.0
    with pytest.warns(UserWarning, match="undefined; reported as 0"):
        assert plain_metrics(np.ones(3), np.ones(3))["ccc"] == 0.0


def test_a_score_of_its_own_range_is_judged_by_its_concordance() -> None:
    assert headline_metric(TASK) == "ccc"
    metrics = compute_metrics(TASK, TRUTH, [*ANSWERS[:-1], None])
    assert (metrics["n"], metrics["n_scored"]) == (6, 5)
    assert "acc7" not in metrics
