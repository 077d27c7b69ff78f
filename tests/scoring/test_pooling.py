"""Weights of a pool are the minimum of the likelihood, found independently; known pools have closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from llm_mer.scoring.pooling import MAX_WEIGHT, POINT_SPREAD, fit_pool, point_scores, pool
from llm_mer.scoring.temperature import fit_temperature, scale_by_temperature


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``(N, 2, C)`` what two independent witnesses say of 5 answers, and truths ``(N,)`` drawn from their product."""
    generator = np.random.default_rng(seed)
    scores = log_softmax(generator.normal(size=(count, 2, 5)) * 1.5, axis=2)
    truth = np.array([generator.choice(5, p=np.exp(row)) for row in log_softmax(scores.sum(axis=1), axis=1)])
    return scores, truth


def test_one_distribution_is_weighed_by_its_inverse_temperature() -> None:
    scores, truth = drawn(300)
    alone = scores[:, :1]
    temperature = fit_temperature(alone[:, 0], truth)
    assert fit_pool(alone, truth)[0] == pytest.approx(1 / temperature, rel=1e-4)
    np.testing.assert_allclose(pool(alone, np.array([1 / temperature])), scale_by_temperature(alone[:, 0], temperature))


def test_no_weights_of_a_fine_grid_are_likelier() -> None:
    scores, truth = drawn(150)
    rows = np.arange(len(truth))
    axis = np.linspace(0, 2, 81)
    losses = [[-pool(scores, np.array([a, b]))[rows, truth].mean() for b in axis] for a in axis]
    best = np.unravel_index(np.argmin(losses), (81, 81))
    found = fit_pool(scores, truth)
    np.testing.assert_allclose(found, axis[list(best)], atol=0.025)
    assert -pool(scores, found)[rows, truth].mean() <= np.min(losses)


def test_witnesses_that_are_independent_given_the_truth_have_weights_of_one() -> None:
    scores, truth = drawn(20_000, seed=3)
    np.testing.assert_allclose(fit_pool(scores, truth), 1.0, atol=0.05)


def test_a_distribution_that_tells_nothing_weighs_nothing_and_a_perfect_one_stops_below_the_bound() -> None:
    scores, truth = drawn(4000, seed=4)
    noise = log_softmax(np.random.default_rng(5).normal(size=(4000, 5)), axis=1)
    right = np.where(np.arange(5) == truth[:, None], 0.0, -3.0)
    assert fit_pool(np.stack([scores[:, 0], -scores[:, 1]], axis=1), truth)[1] == 0.0
    assert fit_pool(np.stack([scores[:, 0], noise], axis=1), truth)[1] == pytest.approx(0, abs=0.05)
    assert 0.9 * MAX_WEIGHT < fit_pool(right[:, None], truth)[0] <= MAX_WEIGHT


def test_equal_weights_are_a_product_and_the_order_of_distributions_does_not_count() -> None:
    scores, truth = drawn(50)
    product = np.exp(scores).prod(axis=1)
    np.testing.assert_allclose(np.exp(pool(scores, np.ones(2))), product / product.sum(axis=1, keepdims=True))
    forward, backward = fit_pool(scores, truth), fit_pool(scores[:, ::-1], truth)
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-4)
    shifted = scores + np.array([7.0, -2.0])[:, None]  # what is not normalised is pooled alike
    np.testing.assert_allclose(fit_pool(shifted, truth), forward, atol=1e-4)


def test_a_weighted_point_is_a_normal_distribution_about_it() -> None:
    grid = np.linspace(-3, 3, 6001)
    weight, point = 4.0, 0.5
    probabilities = np.exp(pool(point_scores(grid, point)[None], np.array([weight])))
    assert probabilities @ grid == pytest.approx(point, abs=1e-3)
    deviation = np.sqrt(probabilities @ (grid - point) ** 2)
    assert deviation == pytest.approx(POINT_SPREAD * 6 / np.sqrt(weight), rel=1e-3)


def test_two_points_are_pooled_to_their_weighted_mean() -> None:
    grid = np.linspace(-3, 3, 6001)
    scores = np.stack([point_scores(grid, -0.5), point_scores(grid, 1.0)])
    probabilities = np.exp(pool(scores, np.array([3.0, 1.0])))
    assert probabilities @ grid == pytest.approx((3 * -0.5 + 1.0) / 4, abs=1e-3)


@pytest.mark.parametrize("scores", [np.zeros((0, 2, 3)), np.full((1, 2, 3), np.nan)])
def test_nothing_and_what_is_not_finite_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="answers to fit weights on"):
        fit_pool(scores, np.zeros(len(scores), dtype=int))
