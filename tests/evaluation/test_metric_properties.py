"""What must hold of every metric whatever the numbers: order, copies, names of classes, clipping, mirrored scores."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mer.evaluation.metrics import (
    bin_of,
    calibration_metrics,
    classification_metrics,
    iemocap_metrics,
    mosi_metrics,
    sims_metrics,
)
from llm_mer.evaluation.resampling import paired_difference, statistics_of
from llm_mer.prompting.tasks import get_task

settings.register_profile("steady", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("steady")

CLASSES = 4
EDGES = (-0.7, -0.1, 0.1, 0.7)
tenths = st.integers(-35, 35).map(lambda value: value / 10)
score_pairs = st.lists(st.tuples(tenths, tenths), min_size=2, max_size=40)
class_pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(-1, CLASSES - 1)), min_size=1, max_size=40)
"""Truth and answer; -1 is an unparseable one."""


def split(pairs: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    truth, answer = zip(*pairs, strict=True)
    return np.array(truth), np.array(answer)


def scores(metric: Any, truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():  # corr of a constant is 0 with a warning, which is tested elsewhere
        warnings.simplefilter("ignore")
        return dict(metric(truth, answer))


def classes(truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    names = [f"c{i}" for i in range(CLASSES)]
    return {**classification_metrics(truth, answer, names), **iemocap_metrics(truth, answer, CLASSES)}


def close(one: dict[str, float], two: dict[str, float]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value == pytest.approx(two[name], abs=1e-9, rel=1e-9), name


@given(score_pairs, st.randoms(use_true_random=False))
def test_the_order_of_samples_and_a_second_copy_of_all_change_no_score_metric(pairs: Any, shuffler: Any) -> None:
    other = list(pairs)
    shuffler.shuffle(other)
    for metric in (mosi_metrics, sims_metrics):
        before = scores(metric, *split(pairs))
        close(before, scores(metric, *split(other)))
        close(before, scores(metric, *split(pairs + pairs)))


@given(class_pairs, st.randoms(use_true_random=False))
def test_the_order_of_samples_and_a_second_copy_of_all_change_no_class_metric(pairs: Any, shuffler: Any) -> None:
    other = list(pairs)
    shuffler.shuffle(other)
    before = classes(*split(pairs))
    close(before, classes(*split(other)))
    close(before, classes(*split(pairs + pairs)))


@given(class_pairs, st.permutations(range(CLASSES)))
def test_the_names_of_classes_change_no_average(pairs: Any, order: list[int]) -> None:
    truth, answer = split(pairs)
    renamed = np.array([*order, -1])  # the last entry, reached by -1, keeps an unparseable answer what it is
    before, after = classes(truth, answer), classes(renamed[truth], renamed[answer])
    averages = [name for name in before if not name.startswith("f1/")]
    close({n: before[n] for n in averages}, {n: after[n] for n in averages})
    for place, name in enumerate(order):
        assert before[f"f1/c{place}"] == pytest.approx(after[f"f1/c{name}"])


@given(class_pairs)
def test_class_metrics_lie_between_zero_and_one_and_an_unparseable_answer_never_helps(pairs: Any) -> None:
    truth, answer = split(pairs)
    found = classes(truth, answer)
    assert all(0 <= value <= 1 + 1e-12 for value in found.values())
    silent = classes(truth, np.where(answer == truth, -1, answer))
    assert silent["accuracy"] == 0 <= found["accuracy"]
    assert silent["weighted_f1"] == 0 <= found["weighted_f1"]


@given(score_pairs)
def test_score_metrics_stay_in_their_ranges(pairs: Any) -> None:
    for metric in (mosi_metrics, sims_metrics):
        for name, value in scores(metric, *split(pairs)).items():
            low, high = {"mae": (0, 7), "corr": (-1, 1), "r2": (-np.inf, 1)}.get(name, (0, 1))
            assert np.isfinite(value), name
            assert low - 1e-9 <= value <= high + 1e-9, name


@given(score_pairs)
def test_clipping_beforehand_changes_what_the_convention_does_not_clip_and_nothing_else(pairs: Any) -> None:
    truth, answer = split(pairs)
    close(
        scores(sims_metrics, truth, answer),
        scores(sims_metrics, np.clip(truth, -1, 1), np.clip(answer, -1, 1)),
    )
    before, after = (scores(mosi_metrics, t, a) for t, a in ((truth, answer), (truth.clip(-3, 3), answer.clip(-3, 3))))
    for name in ("acc7", "acc5", "has0_acc2", "has0_f1", "non0_acc2", "non0_f1"):
        assert before[name] == pytest.approx(after[name]), name


@given(score_pairs)
def test_zero_is_negative_in_sims_where_it_is_positive_in_mosi_so_mirrored_scores_swap_them(pairs: Any) -> None:
    truth, answer = split(pairs)
    assert scores(sims_metrics, truth, answer)["acc2"] == pytest.approx(scores(mosi_metrics, -truth, -answer)["has0_acc2"])
    assert scores(sims_metrics, truth, answer)["f1"] == pytest.approx(scores(mosi_metrics, -truth, -answer)["has0_f1"])


@given(score_pairs)
def test_mirroring_both_sides_changes_neither_error_nor_correlation_nor_rounding(pairs: Any) -> None:
    truth, answer = split(pairs)
    before, after = scores(mosi_metrics, truth, answer), scores(mosi_metrics, -truth, -answer)
    for name in ("mae", "corr", "acc7", "acc5"):
        assert before[name] == pytest.approx(after[name]), name


@given(score_pairs)
def test_the_finer_the_bins_the_fewer_agree_and_a_truth_repeated_agrees_always(pairs: Any) -> None:
    truth, answer = split(pairs)
    found = scores(mosi_metrics, truth, answer)
    assert found["acc7"] <= found["acc5"] + 1e-12
    itself = scores(sims_metrics, truth, truth)
    assert itself["mae"] == 0
    assert {itself[name] for name in ("acc2", "acc3", "acc5")} == {1.0}


@given(st.integers(2, 20), tenths, tenths)
def test_r2_of_constant_truths_is_one_where_all_are_met_and_else_zero(count: int, truth: float, answer: float) -> None:
    same = np.clip(truth, -1, 1) == np.clip(answer, -1, 1)
    assert scores(sims_metrics, np.full(count, truth), np.full(count, answer))["r2"] == float(same)


@given(st.lists(st.integers(-10, 10), min_size=1, max_size=30))
def test_a_bin_is_the_number_of_edges_below_a_score_in_either_precision(values: list[int]) -> None:
    expected = [sum(value > round(edge * 10) for edge in EDGES) for value in values]  # whole tenths, so nothing is rounded
    for kind in (np.float32, np.float64):
        numbers = np.array([value / 10 for value in values], dtype=kind)
        assert bin_of(numbers, EDGES).tolist() == expected


@given(st.integers(2, 30), st.integers(0, 10**6))
def test_a_shift_of_all_logits_changes_no_calibration(rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, truth = generator.normal(0, 2, (rows, CLASSES)), generator.integers(0, CLASSES, rows)

    def normal(values: np.ndarray) -> np.ndarray:
        return values - np.log(np.exp(values).sum(axis=1, keepdims=True))

    close(calibration_metrics(truth, normal(logits)), calibration_metrics(truth, normal(logits + 3.0)))


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_two_systems_in_the_other_order_differ_by_the_opposite_with_the_same_p(seed: int) -> None:
    generator, task = np.random.default_rng(seed), get_task("emotion")
    truth, one, two = ([task.label_names[i] for i in generator.integers(0, task.num_classes, 20)] for _ in range(3))
    for metric in statistics_of(task):
        ahead, (low, high), p = paired_difference(task, metric, truth, one, two, 50, 0)
        behind, (other_low, other_high), q = paired_difference(task, metric, truth, two, one, 50, 0)
        assert ahead == pytest.approx(-behind, abs=1e-12)
        assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-12)
        assert (p.value, p.is_bound) == (pytest.approx(q.value), q.is_bound)
        assert 0 < p.value <= 1
