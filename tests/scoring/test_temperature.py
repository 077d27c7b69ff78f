"""The fitted temperature is the minimum of the likelihood, found independently."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax

from llm_mer.scoring.temperature import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_temperature,
    scale_by_temperature,
)


def drawn(count: int, classes: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities ``sharpness`` times too sure, and truths drawn from the distributions before they were sharpened."""
    generator = np.random.default_rng(seed)
    honest = log_softmax(generator.normal(size=(count, classes)) * 1.5, axis=1)
    truth = np.array([generator.choice(classes, p=np.exp(row)) for row in honest])
    return log_softmax(sharpness * honest, axis=1), truth


def test_two_answers_of_one_confidence_have_their_closed_form() -> None:
    # Every answer says 90 %, and 60 % are right: σ(logit(.9) / T) = .6.
    log_probs = np.log(np.tile([0.9, 0.1], (10, 1)))
    truth = np.array([0] * 6 + [1] * 4)
    expected = math.log(0.9 / 0.1) / math.log(0.6 / 0.4)
    assert fit_temperature(log_probs, truth) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 0.5), (7, 3.0), (61, 1.0)])
def test_no_temperature_of_a_fine_grid_is_likelier(classes: int, sharpness: float) -> None:
    log_probs, truth = drawn(200, classes, sharpness, seed=classes)
    grid = np.geomspace(0.2, 20, 4001)
    losses = [-scale_by_temperature(log_probs, t)[np.arange(200), truth].mean() for t in grid]
    found = fit_temperature(log_probs, truth)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert -scale_by_temperature(log_probs, found)[np.arange(200), truth].mean() <= min(losses)


def test_the_temperature_of_an_overconfident_model_is_recovered() -> None:
    log_probs, truth = drawn(20_000, 7, sharpness=2.5, seed=1)
    assert fit_temperature(log_probs, truth) == pytest.approx(2.5, rel=0.04)


def test_the_order_of_answers_stays_and_they_stay_a_distribution() -> None:
    log_probs, _ = drawn(50, 7, 1.0, seed=2)
    for temperature in (0.3, 1.0, 8.0):
        scaled = scale_by_temperature(log_probs, temperature)
        assert (scaled.argsort(axis=1) == log_probs.argsort(axis=1)).all()
        assert np.exp(scaled).sum(axis=1) == pytest.approx(np.ones(50))
    assert scale_by_temperature(log_probs, 1.0) == pytest.approx(log_probs)
    assert scale_by_temperature(scale_by_temperature(log_probs, 3.0), 1 / 3) == pytest.approx(log_probs)


def test_answers_that_are_all_right_or_tell_nothing_stop_at_the_bounds() -> None:
    log_probs = np.log(np.tile([0.7, 0.3], (4, 1)))
    assert fit_temperature(log_probs, np.zeros(4, dtype=int)) == MIN_TEMPERATURE
    assert fit_temperature(log_probs, np.array([0, 1, 0, 1])) == MAX_TEMPERATURE
    with pytest.raises(ValueError, match="0 answers"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))
