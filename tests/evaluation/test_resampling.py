"""Vectorised statistics against scikit-learn and SciPy; intervals and paired comparisons against what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, recall_score

from llm_mer.evaluation import resampling as bootstrap
from llm_mer.evaluation.metrics import headline_metric, iemocap_metrics
from llm_mer.evaluation.p_values import PValue, two_sided_p
from llm_mer.evaluation.resampling import (
    metric_intervals,
    paired_difference,
    paired_difference_over_seeds,
    percentile_interval,
    resample,
)
from llm_mer.prompting.tasks import builtin_tasks, get_task

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")


def classes(seed: int, n: int = 40, rows: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 5, (rows, n))
    predicted = np.where(random.random((rows, n)) < 0.5, truth, random.integers(-1, 5, (rows, n)))
    return truth, predicted


@pytest.mark.parametrize("seed", range(4))
def test_class_statistics_equal_scikit_learn_row_by_row(seed: int) -> None:
    truth, predicted = classes(seed)
    for row in range(len(truth)):
        t, p = truth[row], predicted[row]
        one = slice(row, row + 1)
        assert bootstrap.accuracy(truth[one], predicted[one])[0] == pytest.approx(accuracy_score(t, p))
        f1 = f1_score(t, p, labels=np.unique(t), average="weighted", zero_division=0)
        assert bootstrap.weighted_f1(truth[one], predicted[one])[0] == pytest.approx(f1)
        recall = recall_score(t, p, labels=np.unique(t), average="macro", zero_division=0)
        assert bootstrap.mean_recall(truth[one], predicted[one])[0] == pytest.approx(recall)


@pytest.mark.parametrize("seed", range(4))
def test_one_vs_all_accuracy_equals_that_of_the_metrics_row_by_row(seed: int) -> None:
    truth, predicted = classes(seed)
    found = bootstrap.one_vs_all_accuracy(6)(truth, predicted)
    expected = [iemocap_metrics(t, p, 6)["ova_accuracy"] for t, p in zip(truth, predicted, strict=True)]
    np.testing.assert_allclose(found, expected)
    assert "ova_accuracy" in bootstrap.statistics_of(get_task("iemocap4"))
    assert "ova_accuracy" not in bootstrap.statistics_of(EMOTION)


def test_all_rows_at_once_equal_one_row_at_a_time() -> None:
    truth, predicted = classes(3, rows=9)
    for statistic in (bootstrap.accuracy, bootstrap.weighted_f1, bootstrap.mean_recall):
        together = statistic(truth, predicted)
        single = [statistic(truth[i : i + 1], predicted[i : i + 1])[0] for i in range(len(truth))]
        np.testing.assert_allclose(together, single)


def test_score_statistics_equal_scipy_and_a_constant_correlates_with_nothing() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.normal(size=(5, 30)), random.normal(size=(5, 30))
    for row in range(5):
        assert bootstrap.mean_absolute_error(truth, predicted)[row] == pytest.approx(
            mean_absolute_error(truth[row], predicted[row])
        )
        assert bootstrap.correlation(truth, predicted)[row] == pytest.approx(pearsonr(truth[row], predicted[row]).statistic)
    assert bootstrap.correlation(truth, np.full_like(truth, 0.3)).tolist() == [0.0] * 5


def test_an_unparseable_class_is_a_wrong_answer() -> None:
    truth = ["joy", "anger", "joy", "fear"]
    intervals = metric_intervals(EMOTION, truth, [None] * 4, 200, 0)
    assert intervals["accuracy"] == (0.0, 0.0)


def test_an_unparseable_score_is_left_out_and_nothing_readable_gives_no_interval() -> None:
    whole = metric_intervals(SENTIMENT, [1.0, 2.0, -1.0], [1.0, 2.0, -1.0], 100, 0)
    assert whole["mae"] == (0.0, 0.0)
    assert metric_intervals(SENTIMENT, [1.0, 2.0], [None, None], 100, 0) == {}


def test_intervals_are_reproducible_and_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted = classes(1, n=60, rows=1)
    first = resample(bootstrap.accuracy, truth[0], predicted[0], 700, 5)
    assert len(first) == 700
    again = resample(bootstrap.accuracy, truth[0], predicted[0], 700, 5)
    np.testing.assert_array_equal(first, again)
    monkeypatch.setattr(bootstrap, "BLOCK", 33)
    np.testing.assert_array_equal(first, resample(bootstrap.accuracy, truth[0], predicted[0], 700, 5))


def test_the_interval_of_an_accuracy_agrees_with_the_binomial() -> None:
    truth = np.zeros(400, dtype=int)
    predicted = np.where(np.arange(400) < 300, 0, 1)
    spread = resample(bootstrap.accuracy, truth, predicted, 4000, 0)
    assert spread.mean() == pytest.approx(0.75, abs=0.003)
    assert spread.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=0.06)


def test_identical_systems_differ_by_nothing_and_a_clear_difference_is_significant() -> None:
    random = np.random.default_rng(0)
    names = np.array(EMOTION.label_names)
    truth = names[random.integers(0, 6, 200)].tolist()
    good = [t if random.random() < 0.8 else "neutral" for t in truth]
    bad = [t if random.random() < 0.4 else "neutral" for t in truth]
    assert paired_difference(EMOTION, "accuracy", truth, good, good, 500, 0) == (0.0, (0.0, 0.0), PValue(1.0))
    difference, (low, high), p_value = paired_difference(EMOTION, "accuracy", truth, good, bad, 500, 0)
    assert low < difference < high
    assert low > 0
    assert p_value == PValue(2 / 501, is_bound=True)


def test_the_paired_comparison_is_antisymmetric() -> None:
    truth, predicted = classes(2, n=80, rows=2)
    names = np.array([*EMOTION.label_names])
    t, a, b = (names[np.abs(x)].tolist() for x in (truth[0], predicted[0], predicted[1]))
    one, (low, high), p = paired_difference(EMOTION, "weighted_f1", t, a, b, 400, 1)
    other, (other_low, other_high), q = paired_difference(EMOTION, "weighted_f1", t, b, a, 400, 1)
    assert (one, low, high, p.value) == pytest.approx((-other, -other_high, -other_low, q.value))


def test_seeds_share_their_utterances_so_copies_of_a_run_do_not_narrow_the_interval() -> None:
    truth, predicted = classes(4, n=50, rows=1)
    names = np.array([*EMOTION.label_names])
    t, a = names[truth[0]].tolist(), names[np.abs(predicted[0])].tolist()
    _, once, _ = paired_difference_over_seeds(EMOTION, "accuracy", t, [a], None, 400, 0)
    _, thrice, _ = paired_difference_over_seeds(EMOTION, "accuracy", t, [a, a, a], None, 400, 0)
    assert once == pytest.approx(thrice)


def test_over_one_seed_the_comparison_is_the_plain_paired_one() -> None:
    truth, predicted = classes(5, n=50, rows=2)
    names = np.array([*EMOTION.label_names])
    t, a, b = names[truth[0]].tolist(), names[np.abs(predicted[0])].tolist(), names[np.abs(predicted[1])].tolist()
    one, interval, p_value = paired_difference_over_seeds(EMOTION, "accuracy", t, [a], [b], 300, 0)
    difference, expected, p_expected = paired_difference(EMOTION, "accuracy", t, a, b, 300, 0)
    assert (one, *interval, p_value.value) == pytest.approx((difference, *expected, p_expected.value))


# --- intervals and p-values against what they must be -----------------------------------------------------------------


def mean(values: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=1))


def resampled_mean(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    return resample(mean, values, values, resamples, seed)


def test_an_interval_is_reproducible_by_its_seed() -> None:
    values = np.random.default_rng(3).normal(size=60)
    first = percentile_interval(resampled_mean(values, seed=5))
    assert first == percentile_interval(resampled_mean(values, seed=5))
    assert first != percentile_interval(resampled_mean(values, seed=6))


def test_an_interval_of_a_mean_agrees_with_normal_theory() -> None:
    values = np.random.default_rng(4).normal(size=400)
    low, high = percentile_interval(resampled_mean(values, resamples=4000))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    narrow = percentile_interval(resampled_mean(values, resamples=4000), level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_truth_and_prediction_are_resampled_together() -> None:
    truth = np.arange(30) % 3
    assert percentile_interval(resample(bootstrap.accuracy, truth, truth, 1000, 0)) == (1.0, 1.0)
    some_wrong = np.where(np.arange(30) < 6, -1, truth)
    low, high = percentile_interval(resample(bootstrap.accuracy, truth, some_wrong, 1000, 0))
    assert 0.5 < low < 0.8 < high < 1.0


def paired_p(truth: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0) -> float:
    one, two = (resample(bootstrap.accuracy, truth, system, 1000, seed) for system in (first, second))
    return two_sided_p(one - two).value


def test_p_is_small_for_a_clear_difference_in_either_direction() -> None:
    truth = np.random.default_rng(5).integers(0, 3, 200)
    worse = np.where(np.arange(200) % 4 == 0, (truth + 1) % 3, truth)
    assert 0.0 < paired_p(truth, truth, worse) < 0.01
    assert 0.0 < paired_p(truth, worse, truth) < 0.01


def test_p_is_one_for_identical_systems() -> None:
    truth = np.random.default_rng(6).integers(0, 3, 100)
    system = np.where(np.arange(100) % 5 == 0, 0, truth)
    assert paired_p(truth, system, system) == 1.0


def test_p_is_large_for_systems_equally_good_on_different_rows() -> None:
    truth = np.zeros(100, dtype=int)
    first, second = (np.arange(100) % 10 == 0).astype(int), (np.arange(100) % 10 == 5).astype(int)
    p = paired_p(truth, first, second, seed=1)
    assert p > 0.5
    assert p == paired_p(truth, first, second, seed=1)


@pytest.mark.parametrize("name", list(builtin_tasks()))
def test_the_headline_metric_of_every_task_is_computed_with_an_interval(name: str) -> None:
    task = get_task(name)
    assert headline_metric(task) in bootstrap.statistics_of(task)
