"""Temperatures are fitted on validation, kept with the weights they belong to, and taken or left out by whoever answers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from llm_mer.checkpoints.calibration import Calibration, Temperature
from llm_mer.checkpoints.integrity import CALIBRATION_FILE, CHECKSUMS_FILE, verify_checkpoint
from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.cli.main import main
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.evaluation.calibrate import calibrate, fit
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.metrics import calibration_metrics
from llm_mer.evaluation.options import CalibrateConfig, EvaluateConfig
from llm_mer.evaluation.proper_scores import answer_arrays, probability_scores
from llm_mer.evaluation.rows import EVALUATION, PREDICTIONS, Evaluation, save_predictions, table
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task
from llm_mer.reporting.hub_upload import stage_for_hub
from llm_mer.reporting.options import ReportConfig
from llm_mer.reporting.report import build_page
from llm_mer.reporting.wording import format_number
from llm_mer.training.output_folder import is_run_file


@pytest.fixture(scope="module")
def calibrated(trained: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained checkpoint with temperatures. Tests must not write into it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("calibrated") / "checkpoint"))
    assert main(["calibrate", str(folder), "--data", str(store)]) == 0
    return folder


def test_the_command_keeps_what_a_fit_on_validation_finds(calibrated: Path, trained: Path, store: Path) -> None:
    kept = Calibration.load(calibrated)
    assert kept is not None
    assert kept.data == UtteranceStore.open(store).info.fingerprint
    pipeline = MerPipeline.from_pretrained(trained)
    answers = pipeline.predictor.predict(pipeline.questions(list(UtteranceStore.open(store).split("valid")), pipeline.tasks))
    expected = fit(answers, pipeline.tasks)
    assert {(t.task, t.language) for t in expected} == {(t, x) for t in ("emotion", "sentiment") for x in ("en", "zh")}
    for found, wanted in zip(kept.temperatures, expected, strict=True):
        assert found.temperature == pytest.approx(wanted.temperature, rel=1e-3)
        assert found.nll_after <= found.nll_before
    assert CALIBRATION_FILE in json.loads((calibrated / CHECKSUMS_FILE).read_text())["files"]
    verify_checkpoint(calibrated)


def test_answers_take_the_temperatures_by_default_and_their_labels_stay(calibrated: Path, store: Path) -> None:
    utterances = list(UtteranceStore.open(store).split("test"))[:6]
    raw = MerPipeline.from_pretrained(calibrated, calibration=False)(utterances)
    kept = Calibration.load(calibrated)
    assert kept is not None
    for before, after in zip(raw, MerPipeline.from_pretrained(calibrated)(utterances), strict=True):
        temperature = kept.by_question()[after.task, after.language]
        assert before.temperature is None
        assert after.temperature == temperature
        expected = log_softmax(np.array(before.log_probabilities) / temperature)
        assert after.log_probabilities == pytest.approx(expected, abs=1e-4)
        assert np.argmax(after.log_probabilities) == np.argmax(before.log_probabilities)
        if after.task == "emotion":
            assert after.value == before.value


@pytest.mark.parametrize("split", ["test", "train"])
def test_another_split_than_validation_is_refused_before_anything_is_read(split: str, no_backbone: None) -> None:
    with pytest.raises(UserError, match=f"--split {split}: temperatures are fitted on valid alone"):
        calibrate(CalibrateConfig("nowhere", "nowhere", split=split))


def test_temperatures_of_other_weights_are_refused_and_can_be_left_out(trained: Path, copied: Path) -> None:
    Calibration("0" * 64, "data", (Temperature("emotion", "en", 2.0, 3, 1.0, 0.9),)).save(copied)
    with pytest.raises(UserError, match="fitted for weights of SHA-256 000000000000…, those beside it have"):
        Calibration.load(copied)
    assert MerPipeline.from_pretrained(copied, calibration=False).predictor.temperatures == {}
    assert Calibration.load(trained) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"temperatures": [{"task": 1}]}', "ZERO"])
def test_a_damaged_file_is_refused_in_one_line(calibrated: Path, tmp_path: Path, content: str) -> None:
    if content == "ZERO":
        entry = json.loads((calibrated / CALIBRATION_FILE).read_text())
        entry["temperatures"][0]["temperature"] = 0.0
        content = json.dumps(entry)
    (tmp_path / CALIBRATION_FILE).write_text(content)
    with pytest.raises(UserError, match=f"{CALIBRATION_FILE}: damaged"):
        Calibration.load(tmp_path)


def test_an_evaluation_says_the_scores_before_and_after(calibrated: Path, store: Path, tmp_path: Path) -> None:
    shared = {"output": str(tmp_path), "resamples": 50, "tasks": ["emotion"], "limit": 12}
    after, _ = evaluate(EvaluateConfig(str(calibrated), [str(store)], **shared), progress=False)
    before, _ = evaluate(EvaluateConfig(str(calibrated), [str(store)], calibration=False, **shared), progress=False)
    for row, raw in zip(after.rows, before.rows, strict=True):
        assert {s.metric for s in row.probability_scores} == {"nll", "brier", "ece"}
        for score in row.probability_scores:
            assert score.value == pytest.approx(row.metrics[score.metric], abs=1e-6)
            assert score.interval[0] <= score.interval[1]
            assert score.uncalibrated == pytest.approx(raw.metrics[score.metric], abs=1e-4)
        assert all(score.uncalibrated is None for score in raw.probability_scores)
    after.save(tmp_path)
    assert (tmp_path / EVALUATION).is_file()
    assert Evaluation.load(tmp_path).rows[0].probability_scores == after.rows[0].probability_scores
    assert "calibrated" in table(after)
    assert "calibrated" not in table(before)


def test_the_report_shows_both_and_validation_warns_that_it_was_fitted_there(
    calibrated: Path, store: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(str(calibrated), [str(store)], str(tmp_path), split="valid", resamples=20, limit=12)
    evaluation, predictions = evaluate(config, progress=False)
    (warning,) = [w for w in evaluation.warnings if "temperatures were fitted on this split, 'valid'" in w]
    assert warning.endswith("its NLL, Brier and ECE and every score of pooled answers flatter the checkpoint")
    evaluation.save(tmp_path)
    save_predictions(tmp_path / PREDICTIONS, predictions)
    page, _ = build_page(ReportConfig(evaluations=[str(tmp_path)]))
    score = next(s for s in evaluation.rows[0].probability_scores if s.metric == "nll")
    assert "uncalibrated" in page
    for value in (score.uncalibrated, score.value):
        assert value is not None
        assert format_number(value) in page


def test_a_merged_and_a_pushed_checkpoint_keep_the_temperatures(calibrated: Path, tmp_path: Path) -> None:
    kept = Calibration.load(calibrated)
    assert kept is not None
    merged = Calibration.load(merge_checkpoint(calibrated, tmp_path / "merged"))
    assert merged is not None
    assert merged.temperatures == kept.temperatures
    assert merged.weights_sha256 != kept.weights_sha256
    assert MerPipeline.from_pretrained(tmp_path / "merged").predictor.temperatures == kept.by_question()
    verify_checkpoint(tmp_path / "merged")
    (tmp_path / "staged").mkdir()
    staged = stage_for_hub(calibrated, tmp_path / "staged", "someone/mer")
    assert Calibration.load(staged) == kept
    verify_checkpoint(staged)


def test_fitting_again_leaves_whole_checksums_and_overwriting_a_run_removes_the_temperatures(
    calibrated: Path, copied: Path
) -> None:
    kept = Calibration.load(calibrated)
    assert kept is not None
    for calibration in (kept, dataclasses.replace(kept, data="another")):
        calibration.save(copied)
        verify_checkpoint(copied)
        assert Calibration.load(copied) == calibration
    assert is_run_file(CALIBRATION_FILE)


def answers(count: int, dialogues: int | None) -> list[Prediction]:
    """Random answers to ``emotion``; with ``dialogues``, each answer stands in them several times over."""
    task, generator = get_task("emotion"), np.random.default_rng(3)
    found = []
    for number in range(count):
        log_probs = log_softmax(generator.normal(size=task.num_classes))
        truth = task.label_names[int(generator.integers(task.num_classes))]
        for copy in range(1 if dialogues is None else dialogues):
            name = f"{number}-{copy}"
            dialogue = None if dialogues is None else f"d{number}"
            found.append(Prediction(name, "emotion", "en", "", {}, list(log_probs), truth=truth, dialogue_id=dialogue))
    return found


def test_scores_are_those_of_the_metrics_and_crps_is_that_of_numpy() -> None:
    task, known = get_task("emotion"), answers(40, None)
    log_probs, truth = answer_arrays(task, known)
    expected = calibration_metrics(truth, log_probs)
    assert {s.metric: s.value for s in probability_scores(task, known, 20, 0)} == pytest.approx(expected)
    score = get_task("sentiment")
    grid = np.array(score.grid())
    log_probs = log_softmax(np.random.default_rng(0).normal(size=len(grid)))
    one = Prediction("a", "sentiment", "en", 0.0, {}, list(log_probs), truth=0.33)
    found = {s.metric: s.value for s in probability_scores(score, [one], 5, 0)}
    p = np.exp(log_probs)
    spread = (p[:, None] * p[None] * np.abs(grid[:, None] - grid[None])).sum()
    assert found["crps"] == pytest.approx((p * np.abs(grid - 0.33)).sum() - spread / 2)
    assert found["nll"] == pytest.approx(-log_probs[int(np.abs(grid - 0.33).argmin())])


def test_repeating_each_answer_within_its_dialogue_does_not_narrow_an_interval() -> None:
    task = get_task("emotion")
    alone = probability_scores(task, [p for p in answers(60, 1)], 2000, 0)[0]
    repeated = probability_scores(task, answers(60, 5), 2000, 0)[0]
    assert repeated.value == pytest.approx(alone.value)
    assert repeated.interval == pytest.approx(alone.interval, rel=1e-9)


def test_a_checkpoint_with_a_head_keeps_a_pool_that_answers_where_it_is_asked_for(calibrated: Path, store: Path) -> None:
    kept = Calibration.load(calibrated)
    assert kept is not None
    assert {(p.task, p.language) for p in kept.pools} == set(kept.by_question())
    for found in kept.pools:
        assert found.weights.keys() == {"scored", "head"}
        assert found.nll <= min(found.nll_alone.values()) + 1e-6
    utterances = list(UtteranceStore.open(store).split("test"))[:4]
    beside = MerPipeline.from_pretrained(calibrated)(utterances)
    raw = MerPipeline.from_pretrained(calibrated, calibration=False)(utterances)
    for one, scored, bare in zip(
        MerPipeline.from_pretrained(calibrated, answer="pooled")(utterances), beside, raw, strict=True
    ):
        weights = kept.pool_weights()[one.task, one.language]
        assert one.pool_weights == weights
        assert scored.pool_weights is None
        if one.task == "emotion":
            assert bare.head_log_probabilities is not None
            expected = weights["scored"] * np.array(bare.log_probabilities)
            expected += weights["head"] * np.array(bare.head_log_probabilities)
            assert one.log_probabilities == pytest.approx(log_softmax(expected), abs=1e-4)


def test_an_evaluation_scores_the_pool_in_rows_of_its_own(calibrated: Path, store: Path, tmp_path: Path) -> None:
    shared = {"output": str(tmp_path), "resamples": 20, "limit": 8}
    together, _ = evaluate(EvaluateConfig(str(calibrated), [str(store)], answer="all", **shared), progress=False)
    alone, _ = evaluate(EvaluateConfig(str(calibrated), [str(store)], answer="pooled", **shared), progress=False)
    for row in alone.rows:
        beside = together.find("pooled", row.task, row.language, row.subset)
        assert beside is not None
        assert (beside.n, beside.baseline, beside.metrics) == (row.n, row.baseline, pytest.approx(row.metrics, abs=1e-6))


def test_a_pool_is_refused_where_nothing_was_fitted_and_where_its_head_would_still_be_heard(
    trained: Path, calibrated: Path, store: Path
) -> None:
    with pytest.raises(UserError, match="answer: pooled, but there are no weights to pool by"):
        MerPipeline.from_pretrained(trained, answer="pooled")
    with pytest.raises(UserError, match="answer: pooled, but there are no weights to pool by"):
        MerPipeline.from_pretrained(calibrated, answer="pooled", calibration=False)
    config = EvaluateConfig(str(calibrated), [str(store)], answer="pooled", conditions=["without:adapter"])
    with pytest.raises(UserError, match="would still hear the adapter's own head"):
        evaluate(config, progress=False)


def test_weights_of_a_pool_that_cannot_be_are_refused(calibrated: Path, tmp_path: Path) -> None:
    entry = json.loads((calibrated / CALIBRATION_FILE).read_text())
    entry["pools"][0]["weights"]["head"] = -1.0
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"the weight of head of task 'emotion' is -1\.0, it must be 0 or more"):
        Calibration.load(tmp_path)
