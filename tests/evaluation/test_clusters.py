"""Clusters of answers; intervals and p-values keep what they promise where answers belong together and seeds differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from llm_mer.evaluation import resampling
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.resampling import (
    expand,
    format_estimate,
    mean_interval,
    metric_intervals,
    paired_difference,
    paired_difference_over_seeds,
    resampled_means,
)
from llm_mer.evaluation.rows import score_rows
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")
RIGHT, WRONG = EMOTION.label_names[0], EMOTION.label_names[1]


def answer(name: int, **of: str) -> Prediction:
    return Prediction(str(name), "emotion", "en", RIGHT, {}, [0.0] * EMOTION.num_classes, truth=RIGHT, **of)  # type: ignore[arg-type]


def test_dialogues_come_before_speakers_and_speakers_before_utterances() -> None:
    dialogues = [answer(i, dialogue_id=f"d{i // 2}", speaker=f"s{i % 2}") for i in range(6)]
    assert str(Clusters.of(dialogues)) == "3 dialogues"
    assert Clusters.of(dialogues).index.tolist() == [0, 0, 1, 1, 2, 2]
    assert str(Clusters.of([answer(i, speaker=f"s{i % 2}") for i in range(6)])) == "2 speakers"
    assert str(Clusters.of([answer(i) for i in range(6)])) == "6 utterances"


def test_an_answer_without_a_dialogue_is_a_unit_of_its_own_and_one_unit_alone_is_not_resampled() -> None:
    mixed = [answer(0, dialogue_id="0"), answer(1, dialogue_id="0"), answer(2), answer(3)]
    assert (str(Clusters.of(mixed)), Clusters.of(mixed).index.tolist()) == ("3 dialogues", [0, 0, 1, 2])
    one = [answer(i, dialogue_id="d", speaker=f"s{i % 3}") for i in range(6)]
    assert str(Clusters.of(one)) == "3 speakers"
    assert str(Clusters.of([answer(i, dialogue_id="d", speaker="s") for i in range(6)])) == "6 utterances"
    alone = [answer(i, dialogue_id=f"d{i}") for i in range(4)]  # every dialogue has one answer
    assert str(Clusters.of(alone)) == "4 utterances"


@pytest.mark.parametrize("name", ["accuracy", "weighted_f1", "mean_recall"])
def test_a_class_statistic_with_weights_is_that_of_rows_repeated_as_often(name: str) -> None:
    statistic = getattr(resampling, name)
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 4, 50), random.integers(-1, 4, 50)
    weights = random.integers(0, 4, (3, 50))
    together = statistic(truth[None], predicted[None], weights)
    for row, value in zip(weights, together, strict=True):
        repeated = np.repeat(np.arange(50), row)
        assert value == pytest.approx(statistic(truth[None, repeated], predicted[None, repeated])[0])


@pytest.mark.parametrize("name", ["mean_absolute_error", "correlation", "root_mean_square_error", "concordance"])
def test_a_score_statistic_with_weights_is_that_of_rows_repeated_as_often(name: str) -> None:
    statistic = getattr(resampling, name)
    random = np.random.default_rng(1)
    truth, predicted, weights = random.normal(size=50), random.normal(size=50), random.integers(0, 4, (3, 50))
    together = statistic(truth[None], predicted[None], weights)
    for row, value in zip(weights, together, strict=True):
        repeated = np.repeat(np.arange(50), row)
        assert value == pytest.approx(statistic(truth[None, repeated], predicted[None, repeated])[0])


def test_plain_percentiles_of_expanded_values_are_hesterbergs() -> None:
    values = np.random.default_rng(2).normal(size=20000)
    for units in (10, 12, 200):
        inner = norm.cdf(np.sqrt(units / (units - 1)) * t.ppf(0.025, units - 1))
        low, high = np.quantile(expand(values, units), [0.025, 0.975])
        assert (low, high) == pytest.approx(np.quantile(values, [inner, 1 - inner]), abs=0.05)
    assert np.argsort(expand(values, 12)).tolist() == np.argsort(values).tolist()


def test_from_few_units_an_interval_is_students_about_the_mean_with_the_bootstraps_standard_error() -> None:
    sums, sizes = np.array([9.0, 4.0, 12.0]), np.array([20, 10, 20])
    values = np.repeat(sums / sizes, sizes)  # the mean of each unit at each of its rows
    given = Clusters("speaker", np.repeat(np.arange(3), sizes), 3)
    spread = resampled_means(values[:, None], given, 40_000, 0)[:, 0]
    deviation = t.ppf(0.975, 2) * np.sqrt(3 / 2) * spread.std()
    low, high = np.quantile(expand(spread, 3), [0.025, 0.975])
    assert (low, high) == pytest.approx((spread.mean() - deviation, spread.mean() + deviation), rel=1e-3)
    assert np.argsort(expand(spread, 3), kind="stable").tolist() == np.argsort(spread, kind="stable").tolist()
    assert mean_interval(values, given, 2000, 0) == (values.min(), values.max())  # no mean of these lies beyond them


@pytest.mark.parametrize(("units", "size"), [(2, 40), (3, 40), (6, 20)])
def test_intervals_over_a_few_speakers_cover_the_truth(units: int, size: int) -> None:
    random = np.random.default_rng(units)
    given = Clusters("speaker", np.repeat(np.arange(units), size), units)
    covered, runs = 0, 300
    for run in range(runs):
        right = named(dialogues(random, units, size, 1)[0])
        low, high = metric_intervals(EMOTION, [RIGHT] * len(right), right, 400, run, given)["accuracy"]
        assert 0 <= low <= high <= 1
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / runs <= 0.99


def test_copies_of_every_utterance_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(3)
    right = [RIGHT if random.random() < 0.6 else WRONG for _ in range(40)]
    truth = [RIGHT] * 40
    (low, high), (low5, high5) = (
        metric_intervals(EMOTION, truth * k, right * k, 2000, 0, Clusters("dialogue", np.tile(np.arange(40), k), 40))[
            "accuracy"
        ]
        for k in (1, 5)
    )
    assert (low5, high5) == pytest.approx((low, high))
    by_utterance = metric_intervals(EMOTION, truth * 5, right * 5, 2000, 0)["accuracy"]
    assert high5 - low5 > 1.8 * (by_utterance[1] - by_utterance[0])


def test_an_utterance_in_two_languages_is_one_unit() -> None:
    twice = [answer(i % 3) for i in range(6)]
    assert (str(Clusters.of(twice)), Clusters.of(twice).index.tolist()) == ("3 utterances", [0, 1, 2, 0, 1, 2])


def test_a_row_says_what_it_resampled() -> None:
    rows = score_rows("as is", [answer(i, dialogue_id=f"d{i // 2}") for i in range(6)], EMOTION, 20, 0)
    assert {(row.unit, row.units, row.n) for row in rows} == {("dialogue", 3, 6)}


def test_an_unreadable_score_leaves_its_row_out_of_both_systems_and_every_seed() -> None:
    truth = [0.0, 1.0, 2.0, 3.0, -1.0, -2.0]
    first = [[0.0, 1.0, 2.0, 3.0, -1.0, -2.0], [0.0, None, 2.0, 3.0, -1.0, -2.0]]
    second = [[0.5, 9.0, 2.5, 3.5, -0.5, -1.5], [0.5, 9.0, 2.5, 3.5, -0.5, None]]
    difference, _, _ = paired_difference_over_seeds(SENTIMENT, "mae", truth, first, second, 200, 0)
    assert difference == pytest.approx(-0.5)


def test_where_no_score_is_read_in_every_seed_the_difference_is_undefined_and_said_to_be(recwarn: Any) -> None:
    truth = [0.0, 1.0]
    first, second = [[0.0, None], [None, 1.0]], [[0.0, 1.0], [0.0, 1.0]]
    given = Clusters.of([answer(i, dialogue_id="d") for i in range(2)])
    for other in (second, None):
        found = paired_difference_over_seeds(SENTIMENT, "mae", truth, first, other, 20, 0, given)
        assert np.isnan([found[0], *found[1], found[2].value]).all()
        assert format_estimate(found[0], found[1], "+") == "undefined"
    assert not recwarn.list


def test_the_units_of_a_row_are_drawn_once_for_every_metric_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    generator = np.random.default_rng

    def counted(seed: Any = None) -> np.random.Generator:
        made.append(seed)
        return generator(seed)

    monkeypatch.setattr(np.random, "default_rng", counted)
    predictions = [
        Prediction(
            f"u{i}", "emotion", "en", RIGHT, truth=RIGHT, log_probabilities=np.log(np.full(6, 1 / 6)).tolist(),
            dialogue_id=f"d{i // 2}",
        )
        for i in range(12)
    ]  # fmt: skip
    (row, _) = score_rows(AS_IS, predictions, EMOTION, 20, 0)
    assert set(row.intervals) == {"accuracy", "weighted_f1"}
    assert [score.metric for score in row.probability_scores] == ["nll", "brier", "ece"]
    assert made == [0]
    given = Clusters.of(predictions)
    assert given.take(np.ones(12, dtype=bool)) is given
    assert given.draw(20, 0) is given.draw(20, 0)
    assert not np.array_equal(given.draw(20, 1), given.draw(20, 0))
    with pytest.raises(ValueError, match="read-only"):
        given.draw(20, 0)[0, 0] = 9


def test_resampled_means_are_those_of_the_rows_written_out_as_often_as_their_unit_is_drawn() -> None:
    random = np.random.default_rng(3)
    values, given = random.normal(size=(9, 2)), Clusters.named("dialogue", list("aabbbbccd"))
    drawn = given.draw(5, 0)
    expected = []
    for counts in drawn:
        rows = [row for unit, count in enumerate(counts) for row in np.flatnonzero(given.index == unit).tolist() * count]
        expected.append(values[rows].mean(axis=0))
    np.testing.assert_allclose(resampled_means(values, given, 5, 0), expected, rtol=1e-12)


# --- simulations --------------------------------------------------------------------------------------------------------


def dialogues(random: np.random.Generator, groups: int, size: int, systems: int) -> np.ndarray:
    """Right or wrong, ``(systems, groups * size)``: each right with .7 on average, alike within a dialogue."""
    level = norm.ppf(0.7)
    shared = random.normal(size=(systems, groups, 1)) * np.sqrt(0.3)
    own = random.normal(size=(systems, groups, size)) * np.sqrt(0.7)
    return np.asarray((shared + own < level).reshape(systems, -1))


def named(right: np.ndarray) -> list[str]:
    return np.where(right, RIGHT, WRONG).tolist()


def test_intervals_over_dialogues_cover_the_truth_and_those_over_utterances_do_not() -> None:
    random = np.random.default_rng(4)
    covered = {"dialogue": 0, "utterance": 0}
    runs, groups, size = 400, 25, 12
    clusters = Clusters("dialogue", np.repeat(np.arange(groups), size), groups)
    truth = [RIGHT] * (groups * size)
    for run in range(runs):
        right = named(dialogues(random, groups, size, 1)[0])
        for unit, given in (("dialogue", clusters), ("utterance", None)):
            difference = paired_difference_over_seeds(EMOTION, "accuracy", truth, [right], None, 200, run, given)
            low, high = difference[1]
            covered[unit] += low <= 0.7 <= high
    assert 0.93 <= covered["dialogue"] / runs <= 0.97
    assert covered["utterance"] / runs < 0.8


def test_two_equal_systems_are_told_apart_in_at_most_seven_of_a_hundred_comparisons() -> None:
    random = np.random.default_rng(5)
    runs, groups, size = 400, 25, 8
    clusters = Clusters("dialogue", np.repeat(np.arange(groups), size), groups)
    truth = [RIGHT] * (groups * size)
    alarms = {"dialogue": 0, "utterance": 0}
    for run in range(runs):
        one, two = map(named, dialogues(random, groups, size, 2))
        for unit, given in (("dialogue", clusters), ("utterance", None)):
            alarms[unit] += paired_difference(EMOTION, "accuracy", truth, one, two, 200, run, given)[2].is_significant
    assert alarms["dialogue"] / runs <= 0.07
    assert alarms["utterance"] / runs > 0.12


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_equal_methods_whose_seeds_differ_are_told_apart_in_at_most_seven_of_a_hundred_comparisons(seeds: int) -> None:
    """A seed moves the accuracy by .05: more than the utterances do. Each seed trains another model of one method."""
    random = np.random.default_rng(6)
    runs, n = 300, 150
    truth = [RIGHT] * n
    alarms = covered = 0
    for run in range(runs):
        easy = random.random(n)
        systems = [
            [named(easy < 0.7 + 0.05 * random.normal() + 0.1 * random.normal(size=n)) for _ in range(seeds)]
            for _ in range(2)
        ]
        alarms += paired_difference_over_seeds(EMOTION, "accuracy", truth, *systems, 200, run)[2].is_significant
        low, high = paired_difference_over_seeds(EMOTION, "accuracy", truth, systems[0], None, 200, run)[1]
        covered += low <= 0.7 <= high
    assert alarms / runs <= 0.07
    assert covered / runs >= 0.93


def trained(random: np.random.Generator, seeds: int, given: Clusters, easy: np.ndarray) -> list[list[str]]:
    """The answers of a method with each seed, right with .7: training moves the whole, each dialogue and each answer.

    Dialogues are easy or hard for every method (``easy``, of variance .25) and for this one (.16), utterances for this one
    (.64); a seed shifts all answers (.0625), those of a dialogue (.04) and each (1).
    """
    groups, n = given.count, len(given.index)
    of_dialogue = easy + 0.4 * random.normal(size=groups)
    shared = of_dialogue[given.index] + 0.8 * random.normal(size=n)
    found = []
    for _ in range(seeds):
        moved = 0.25 * random.normal() + (0.2 * random.normal(size=groups))[given.index] + random.normal(size=n)
        found.append(named(shared + moved < norm.ppf(0.7) * np.sqrt(0.25 + 0.16 + 0.64 + 0.0625 + 0.04 + 1)))
    return found


@pytest.mark.parametrize("seeds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_over_dialogues_and_seeds_together_intervals_cover_the_truth_and_equal_methods_are_seldom_told_apart(
    seeds: int,
) -> None:
    random = np.random.default_rng(7)
    runs, groups, size = 300, 25, 8
    given = Clusters("dialogue", np.repeat(np.arange(groups), size), groups)
    truth = [RIGHT] * (groups * size)
    covered, alarms = 0, {"dialogues and seeds": 0, "utterances of one seed": 0}
    for run in range(runs):
        easy = 0.5 * random.normal(size=groups)
        one, two = (trained(random, seeds, given, easy) for _ in range(2))
        low, high = paired_difference_over_seeds(EMOTION, "accuracy", truth, one, None, 200, run, given)[1]
        covered += low <= 0.7 <= high
        _, _, p = paired_difference_over_seeds(EMOTION, "accuracy", truth, one, two, 200, run, given)
        alarms["dialogues and seeds"] += p.is_significant
        _, _, p = paired_difference(EMOTION, "accuracy", truth, one[0], two[0], 200, run)
        alarms["utterances of one seed"] += p.is_significant
    assert 0.93 <= covered / runs <= 0.97
    assert alarms["dialogues and seeds"] / runs <= 0.07
    assert alarms["utterances of one seed"] / runs > 0.12
