"""A score's distribution: its points and intervals against closed forms and NumPy."""

import numpy as np
import pytest

from llm_mer.prompting.tasks import get_task
from llm_mer.scoring.score_distribution import ScoreDistribution

GRID = np.asarray(get_task("mosi").grid())


def random_distribution(seed: int, rows: int = 20) -> ScoreDistribution:
    return ScoreDistribution(GRID, np.random.default_rng(seed).dirichlet(np.full(len(GRID), 0.3), size=rows))


def test_mean_median_and_mode_of_a_hand_computed_distribution() -> None:
    scores = ScoreDistribution(np.array([-1.0, 0.0, 1.0, 2.0]), np.array([[0.1, 0.3, 0.2, 0.4], [0.6, 0.2, 0.1, 0.1]]))
    np.testing.assert_allclose(scores.mean, [-0.1 + 0.2 + 0.8, -0.6 + 0.1 + 0.2])
    assert scores.median.tolist() == [1.0, -1.0]
    assert scores.mode.tolist() == [2.0, -1.0]


def test_all_mass_on_one_score_makes_every_statistic_that_score() -> None:
    scores = ScoreDistribution(GRID, np.eye(len(GRID)))
    np.testing.assert_allclose(scores.mean, GRID)
    for statistic in (scores.median, scores.mode, scores.interval()[:, 0], scores.interval()[:, 1]):
        assert statistic.tolist() == GRID.tolist()


def test_the_uniform_distribution_has_its_closed_forms() -> None:
    scores = ScoreDistribution(GRID, np.ones((1, len(GRID))))
    assert scores.mean[0] == pytest.approx(0.0)
    assert scores.median[0] == 0.0  # the 31st of 61
    assert scores.mode[0] == -3.0  # of equals, the lowest
    # 7/61 is the first cumulative share of at least 0.1, 55/61 the first of at least 0.9
    assert scores.interval(0.8)[0].tolist() == [-2.4, 2.4]


def test_the_median_at_exactly_half_is_the_lower_score_despite_rounding() -> None:
    # ten times 0.05 sums to just under or over one half in floating point
    scores = ScoreDistribution(np.arange(20.0), np.full((1, 20), 0.05))
    assert scores.median[0] == 9.0
    assert ScoreDistribution(np.array([0.0, 1.0]), np.array([[0.5, 0.5]])).median[0] == 0.0


@pytest.mark.parametrize("level", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_quantiles_equal_numpys_inverted_cdf(level: float) -> None:
    counts = np.random.default_rng(0).integers(0, 5, size=(20, len(GRID)))
    counts[:, 30] += 1
    found = ScoreDistribution(GRID, counts).quantile(level)
    for row, value in zip(counts, found, strict=True):
        expected = np.quantile(np.repeat(GRID, row), level, method="inverted_cdf")
        assert value == pytest.approx(expected if level > 0 else GRID[0])


def test_mean_equals_numpys_weighted_average_and_mode_the_commonest() -> None:
    scores = random_distribution(1)
    np.testing.assert_allclose(scores.mean, [np.average(GRID, weights=row) for row in scores.probabilities])
    np.testing.assert_array_equal(scores.mode, [GRID[np.argmax(row)] for row in scores.probabilities])


def test_the_mean_is_best_under_squared_and_the_median_under_absolute_error() -> None:
    scores = random_distribution(2)
    candidates = np.linspace(-3, 3, 601)
    for row, mean, median in zip(scores.probabilities, scores.mean, scores.median, strict=True):
        squared = ((candidates[:, None] - GRID) ** 2 * row).sum(axis=1)
        absolute = (np.abs(candidates[:, None] - GRID) * row).sum(axis=1)
        assert (row * (GRID - mean) ** 2).sum() <= squared.min() + 1e-9
        assert (row * np.abs(GRID - median)).sum() <= absolute.min() + 1e-9


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_the_interval_holds_its_share_and_leaves_half_the_rest_at_most_on_either_side(coverage: float) -> None:
    scores = random_distribution(3)
    tail = (1 - coverage) / 2
    for row, (low, high), median in zip(scores.probabilities, scores.interval(coverage), scores.median, strict=True):
        assert low <= median <= high
        assert row[(low <= GRID) & (high >= GRID)].sum() >= coverage - 1e-9
        assert row[low > GRID].sum() < tail + 1e-9
        assert row[high < GRID].sum() < tail + 1e-9


def test_wider_coverage_never_narrows_the_interval() -> None:
    scores = random_distribution(4)
    narrow, wide = scores.interval(0.5), scores.interval(0.9)
    assert (wide[:, 0] <= narrow[:, 0]).all()
    assert (wide[:, 1] >= narrow[:, 1]).all()


def test_masses_are_normalised_a_row() -> None:
    scores = ScoreDistribution(np.array([0.0, 1.0]), np.array([[1.0, 3.0], [5.0, 5.0]], dtype=np.float32))
    np.testing.assert_allclose(scores.probabilities, [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(scores.mean, [0.75, 0.5])


def test_a_tasks_grid_takes_the_probabilities_of_its_answers() -> None:
    grid = get_task("sims").grid()
    expected = np.exp(np.linspace(-40, 5, 21))[None]
    expected /= expected.sum()
    scores = ScoreDistribution(grid, expected)
    assert scores.grid.tolist() == list(grid)
    assert scores.mode[0] == 1.0
    np.testing.assert_allclose(scores.probabilities, expected, atol=1e-7)


def test_a_grid_without_an_answer_for_each_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="21 admissible scores, 2 answers"):
        ScoreDistribution(get_task("sims").grid(), np.full((1, 2), 0.5))
