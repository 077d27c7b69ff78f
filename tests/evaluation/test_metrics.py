"""The field's metric conventions on hand-computed cases, and against scikit-learn and scipy where those can judge."""

import warnings

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, r2_score

from llm_mer.errors import UserError
from llm_mer.evaluation.metrics import (
    bin_of,
    calibration_metrics,
    class_indices,
    classification_metrics,
    compute_metrics,
    iemocap_metrics,
    interval_coverage,
    majority_baseline,
    mosi_metrics,
    pearson,
    sims_metrics,
)
from llm_mer.prompting.tasks import get_task


def mosi(truth: list[float], predicted: list[float]) -> dict[str, float]:
    return mosi_metrics(np.array(truth), np.array(predicted))


def sims(truth: list[float], predicted: list[float], dtype: type = np.float64) -> dict[str, float]:
    return sims_metrics(np.array(truth, dtype=dtype), np.array(predicted, dtype=dtype))


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float((truth == predicted).mean())


# --- CMU-MOSI and MOSEI -----------------------------------------------------------------------------------------------


def test_mosi_mae_and_corr_are_on_unclipped_values() -> None:
    truth, predicted = [-3.0, 0.0, 3.0, 1.0], [-5.0, 0.5, 4.0, 1.0]
    metrics = mosi(truth, predicted)
    assert metrics["mae"] == pytest.approx((2 + 0.5 + 1 + 0) / 4)
    assert metrics["corr"] == pytest.approx(pearsonr(truth, predicted).statistic)
    assert metrics["acc7"] == pytest.approx(1.0)  # -5 and 4 clip to the ends, 0.5 rounds to 0


@pytest.mark.parametrize(
    ("truth", "predicted", "same"),
    [
        (0.0, 0.5, True),  # half to even, down
        (1.0, 0.5, False),
        (2.0, 1.5, True),  # half to even, up
        (2.0, 2.5, True),
        (3.0, 2.5, False),
        (0.0, -0.5, True),
        (-2.0, -1.5, True),
        (-2.0, -2.5, True),
        (3.0, 9.0, True),
        (-3.0, 3.0, False),
    ],
)
def test_acc7_clips_to_three_and_rounds_half_to_even(truth: float, predicted: float, same: bool) -> None:
    assert mosi([truth, 1.5], [predicted, 1.6])["acc7"] == (1.0 if same else 0.5)


def test_acc5_clips_both_sides_to_two() -> None:
    metrics = mosi([3.0, -3.0, 2.0, 1.0], [2.0, -1.6, 2.6, 1.6])
    assert metrics["acc5"] == 0.75
    assert metrics["acc7"] == 0.0


def test_has0_counts_zero_as_positive_on_both_sides() -> None:
    metrics = mosi([0.0, 0.0, -1.0, 1.0], [0.0, -0.1, -0.2, 2.0])
    assert metrics["has0_acc2"] == 0.75
    expected = f1_score([1, 1, 0, 1], [1, 0, 0, 1], average="weighted")
    assert metrics["has0_f1"] == pytest.approx(expected)
    assert mosi([0.0, 1.0], [-0.0, 1.0])["has0_acc2"] == 1.0


def test_non0_drops_zero_truths_and_counts_a_predicted_zero_as_negative() -> None:
    metrics = mosi([0.0, 1.0, -1.0, 2.0, -2.0], [3.0, 0.0, 0.0, 0.1, 0.1])
    assert metrics["non0_acc2"] == 0.5
    expected = f1_score([1, 0, 1, 0], [0, 0, 1, 1], average="weighted")
    assert metrics["non0_f1"] == pytest.approx(expected)


def test_two_class_f1_is_weighted_by_support_not_that_of_the_positive_class() -> None:
    metrics = mosi([1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0])
    # positive: precision 1, recall 2/3, f1 0.8, support 3; negative: precision 1/2, recall 1, f1 2/3, support 1
    assert metrics["non0_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)


def test_non0_is_zero_when_every_truth_is_zero() -> None:
    with pytest.warns(UserWarning, match="constant"):
        metrics = mosi([0.0, 0.0], [0.3, -0.3])
    assert metrics["non0_acc2"] == 0.0
    assert metrics["non0_f1"] == 0.0


# --- correlation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([1.0, 2.0, 3.0], [0.3, 0.3, 0.3]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0], [2.0]),
    ],
    ids=["constant prediction", "constant truth", "one sample"],
)
def test_correlation_of_a_constant_is_zero_with_a_warning_never_nan(truth: list[float], predicted: list[float]) -> None:
    with pytest.warns(UserWarning, match="constant"):
        assert pearson(np.array(truth), np.array(predicted)) == 0.0


def test_a_constant_prediction_has_zero_corr_in_both_score_conventions() -> None:
    for convention in (mosi_metrics, sims_metrics):
        with pytest.warns(UserWarning, match="constant"):
            assert convention(np.array([0.1, -0.5, 0.7]), np.zeros(3))["corr"] == 0.0


def test_correlation_equals_scipy_and_does_not_warn_when_defined() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=50)
    predicted = truth + generator.normal(size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pearson(truth, predicted) == pytest.approx(pearsonr(truth, predicted).statistic)
        assert pearson(truth, -truth) == pytest.approx(-1.0)
        assert pearson(truth, predicted * 1e-200) == pytest.approx(pearson(truth, predicted))  # variance underflows


# --- CH-SIMS and SIMS-V2 ----------------------------------------------------------------------------------------------


def test_sims_clips_before_everything_mae_and_corr_too() -> None:
    truth, predicted = [-1.0, 0.2, 1.0, 0.4], [-4.0, 0.1, 7.0, 0.9]
    clipped = [-1.0, 0.1, 1.0, 0.9]
    metrics = sims(truth, predicted)
    assert metrics["mae"] == pytest.approx((0 + 0.1 + 0 + 0.5) / 4)
    assert metrics["corr"] == pytest.approx(pearsonr(truth, clipped).statistic)
    assert metrics["r2"] == pytest.approx(r2_score(truth, clipped))


def test_sims_counts_zero_as_negative_the_opposite_of_has0() -> None:
    truth, predicted = [0.0, 0.0, 1.0, -1.0], [-0.4, 0.4, 0.0, 0.0]
    metrics = sims(truth, predicted)
    assert metrics["acc2"] == 0.5
    assert metrics["f1"] == pytest.approx(f1_score([0, 0, 1, 0], [0, 1, 0, 0], average="weighted"))
    assert mosi(truth, predicted)["has0_acc2"] == 0.5
    assert sims([0.0, 1.0], [-1.0, 1.0])["acc2"] == 1.0
    assert mosi([0.0, 1.0], [-1.0, 1.0])["has0_acc2"] == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_land_in_the_right_closed_bin_in_either_precision(dtype: type) -> None:
    values = np.array([-1.0, -0.7, -0.6, -0.1, 0.0, 0.1, 0.2, 0.7, 0.8, 1.0], dtype=dtype)
    assert bin_of(values, [-0.7, -0.1, 0.1, 0.7]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert bin_of(values, [-0.1, 0.1]).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert bin_of(values, [0.0]).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert bin_of(np.array([-0.0], dtype=dtype), [0.0]).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_acc3_and_acc5_compare_bins_at_their_edges(dtype: type) -> None:
    metrics = sims([0.1, -0.1, 0.7, -0.7], [0.0, -0.2, 0.2, -1.0], dtype)
    assert metrics["acc3"] == 1.0
    assert metrics["acc5"] == 1.0
    metrics = sims([0.1, -0.1, 0.7, -0.7], [0.2, 0.0, 0.8, -0.6], dtype)
    assert metrics["acc3"] == 0.5
    assert metrics["acc5"] == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_acc2_weak_keeps_truths_up_to_four_tenths_inclusive(dtype: type) -> None:
    metrics = sims([0.4, -0.4, 0.2, 0.6, -1.0], [0.1, 0.1, 0.1, -1.0, 1.0], dtype)
    assert metrics["acc2_weak"] == pytest.approx(2 / 3)
    assert metrics["acc2"] == pytest.approx(2 / 5)


def test_acc2_weak_without_a_weak_sample_is_zero() -> None:
    assert sims([0.8, -0.8], [0.8, -0.8])["acc2_weak"] == 0.0


def test_a_perfect_system_scores_one_in_every_sims_accuracy() -> None:
    truth = [round(-1 + 0.1 * i, 1) for i in range(21)]
    metrics = sims(truth, truth)
    assert {metrics[name] for name in ("acc2", "f1", "acc3", "acc5", "acc2_weak", "r2")} == {1.0}
    assert metrics["mae"] == 0.0
    assert metrics["corr"] == pytest.approx(1.0)


# --- classes ----------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d"]


def test_class_metrics_equal_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    truth, predicted = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    metrics = classification_metrics(truth, predicted, NAMES)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["weighted_f1"] == pytest.approx(f1_score(truth, predicted, average="weighted"))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    for name, expected in zip(NAMES, f1_score(truth, predicted, average=None), strict=True):
        assert metrics[f"f1/{name}"] == pytest.approx(expected)


def test_f1_on_a_hand_counted_case() -> None:
    metrics = classification_metrics(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), NAMES[:2])
    assert metrics["accuracy"] == 0.75
    assert metrics["f1/a"] == pytest.approx(0.8)
    assert metrics["f1/b"] == pytest.approx(2 / 3)
    assert metrics["weighted_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_a_class_absent_from_truth_and_predictions_does_not_lower_macro_f1() -> None:
    truth = np.array([0, 1, 1, 0])
    metrics = classification_metrics(truth, truth, NAMES)
    assert metrics["macro_f1"] == 1.0
    assert metrics["f1/d"] == 0.0


def test_a_class_absent_from_the_truth_but_predicted_counts_in_macro_f1_alone() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    metrics = classification_metrics(truth, predicted, NAMES)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["weighted_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_an_unparseable_answer_is_wrong_and_a_member_of_no_class() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, -1, 1, 1])
    metrics = classification_metrics(truth, predicted, NAMES[:2])
    assert metrics["accuracy"] == 0.75
    assert metrics["f1/a"] == pytest.approx(2 / 3)
    assert metrics["f1/b"] == 1.0
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_iemocap_ua_is_the_mean_recall_and_wa_the_accuracy() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 0])
    metrics = iemocap_metrics(truth, predicted, 3)
    assert metrics["wa"] == pytest.approx(4 / 6)
    assert metrics["ua"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert metrics["ua"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    # a: 4 of 6 right as a-or-not, b: 5 of 6, c: 5 of 6
    assert metrics["ova_accuracy"] == pytest.approx((4 + 5 + 5) / 18)


def test_ua_leaves_out_a_class_absent_from_the_truth() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 3, 1, -1])
    metrics = iemocap_metrics(truth, predicted, 4)
    assert metrics["ua"] == 0.5
    assert metrics["ova_accuracy"] == pytest.approx((3 + 3 + 4 + 3) / 16)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_ece_on_a_hand_computed_case() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35], [0.35, 0.65]])
    metrics = calibration_metrics(np.array([0, 1, 0, 1]), np.log(probabilities))
    # bin of 0.9: half the samples, half right; bin of 0.65: half the samples, all right
    assert metrics["ece"] == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.65 - 1.0))
    assert metrics["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.35**2 + 2 * 0.35**2) / 4)
    assert metrics["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.65, 0.65]).mean())


def test_ece_bins_are_fifteenths() -> None:
    # 0.86 and 0.88 lie on either side of 13/15, so the gaps 0.86 - 1 and 0.88 - 0 do not cancel; 0.89 and 0.91 share a bin.
    apart = calibration_metrics(np.array([0, 1]), np.log([[0.86, 0.14], [0.88, 0.12]]))
    assert apart["ece"] == pytest.approx(0.5 * 0.14 + 0.5 * 0.88)
    together = calibration_metrics(np.array([0, 1]), np.log([[0.89, 0.11], [0.91, 0.09]]))
    assert together["ece"] == pytest.approx(abs(0.9 - 0.5))


def test_certain_and_right_is_perfectly_calibrated() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(3))
    metrics = calibration_metrics(np.arange(3), log_probs)
    assert metrics == {"nll": 0.0, "brier": 0.0, "ece": 0.0}


def test_calibration_equals_scikit_learn_and_ignores_a_constant_shift_of_logits() -> None:
    generator = np.random.default_rng(2)
    logits, truth = generator.normal(size=(100, 5)), generator.integers(0, 5, 100)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = calibration_metrics(truth, logits)
    assert metrics["nll"] == pytest.approx(log_loss(truth, probabilities, labels=range(5)))
    assert metrics["brier"] == pytest.approx(((probabilities - np.eye(5)[truth]) ** 2).sum(axis=1).mean())
    assert calibration_metrics(truth, logits + 7.0) == pytest.approx(metrics)


def test_interval_coverage_includes_both_ends() -> None:
    intervals = np.array([[0.1, 0.3], [0.1, 0.3], [0.1, 0.3], [0.1, 0.3]])
    assert interval_coverage(np.array([0.1, 0.3, 0.2, 0.4]), intervals) == 0.75
    assert interval_coverage(np.array([0.1, 0.3, 0.2, 0.4], dtype=np.float32), intervals) == 0.75


# --- whole tasks ------------------------------------------------------------------------------------------------------


def test_compute_metrics_reports_n_and_the_unparseable_rate_beside_the_class_metrics() -> None:
    metrics = compute_metrics(get_task("meld"), ["joy", "anger", "joy", "fear"], ["joy", None, None, "joy"])
    assert metrics["n"] == 4.0
    assert metrics["unparseable_rate"] == 0.5
    assert metrics["accuracy"] == 0.25
    assert "wa" not in metrics


def test_compute_metrics_of_iemocap_has_wa_ua_weighted_f1_and_ova() -> None:
    truth, predicted = ["happy", "excited", "sad", "neutral"], ["happy", "happy", "sad", "angry"]
    metrics = compute_metrics(get_task("iemocap4"), truth, predicted)
    assert metrics["wa"] == metrics["accuracy"] == 0.75  # excited is merged into happy
    assert metrics["ua"] == pytest.approx(2 / 3)
    assert metrics["ova_accuracy"] == pytest.approx((3 + 4 + 4 + 3) / 16)
    assert metrics["weighted_f1"] == pytest.approx(0.75)


def test_unparseable_scores_are_left_out_and_counted() -> None:
    intervals = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 3.0]])
    metrics = compute_metrics(get_task("mosi"), [1.0, -3.0, 2.0], [1.0, None, 3.0], intervals=intervals)
    assert metrics["n"] == 3.0
    assert metrics["n_scored"] == 2.0
    assert metrics["unparseable_rate"] == pytest.approx(1 / 3)
    assert metrics["mae"] == pytest.approx(0.5)
    assert metrics["coverage80"] == 1.0


def test_nothing_readable_leaves_only_the_counts() -> None:
    assert compute_metrics(get_task("sims"), [0.5, 0.1], [None, None]) == {
        "n": 2.0,
        "unparseable_rate": 1.0,
        "n_scored": 0.0,
    }


def test_score_tasks_use_their_own_convention() -> None:
    truth, predicted = [0.0, 1.0, -1.0], [-0.5, 1.0, -1.0]
    assert "acc2_weak" in compute_metrics(get_task("simsv2"), truth, predicted)
    assert "non0_f1" in compute_metrics(get_task("mosei"), truth, predicted)


def test_probabilities_add_calibration() -> None:
    log_probs = np.log(np.array([[0.7, 0.3], [0.2, 0.8]]))
    metrics = compute_metrics(get_task("polarity"), ["negative", "positive"], ["negative", "positive"], log_probs)
    assert metrics["nll"] == pytest.approx(-np.log([0.7, 0.8]).mean())


def test_evaluating_nothing_is_an_error_naming_the_task() -> None:
    with pytest.raises(ValueError, match="meld"):
        compute_metrics(get_task("meld"), [], [])


def test_an_unknown_label_in_the_truth_is_an_error_not_a_class() -> None:
    with pytest.raises(UserError, match="boredom"):
        class_indices(get_task("meld"), ["joy", "boredom"])
    assert class_indices(get_task("meld"), ["neutral", None, "anger", "高兴"]).tolist() == [0, -1, 6, 4]


# --- baselines and uncertainty ----------------------------------------------------------------------------------------


def test_majority_baseline_answers_the_commonest_training_class() -> None:
    truth = ["joy", "joy", "joy", "neutral"]
    assert majority_baseline(get_task("meld"), truth)["accuracy"] == 0.75
    metrics = majority_baseline(get_task("meld"), truth, ["neutral", "neutral", "joy"])
    assert metrics["accuracy"] == 0.25
    assert metrics["weighted_f1"] == pytest.approx(0.25 * 2 * 0.25 / 1.25)
    assert metrics["n"] == 4.0


def test_majority_baseline_of_melds_published_test_split() -> None:
    truth = ["neutral"] * 1256 + ["anger"] * (2610 - 1256)
    assert round(majority_baseline(get_task("meld"), truth, ["neutral"])["accuracy"], 4) == 0.4812


def test_mean_baseline_of_scores_uses_the_training_mean_and_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = majority_baseline(get_task("mosi"), [1.0, 3.0], [0.0, 1.0])
    assert metrics["mae"] == pytest.approx((0.5 + 2.5) / 2)
    assert metrics["corr"] == 0.0
    assert majority_baseline(get_task("mosi"), [1.0, 3.0])["mae"] == pytest.approx(1.0)
