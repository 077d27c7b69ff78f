"""Answers tell how far their utterance is from the training data, and warn of one that is far."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from llm_mer.checkpoints.integrity import CHECKSUMS_FILE, write_checksums
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.adapter_warnings import find_far
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.evaluation.subsets import DISTANCE, subsets_of
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction


def test_an_utterance_like_the_training_data_is_near_and_another_scale_is_far(
    trained: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = MerPipeline.from_pretrained(trained, device="cpu")
    near = list(UtteranceStore.open(store).split("valid"))[:6]
    with caplog.at_level(logging.WARNING):
        answers = pipeline(near)
    assert all(0 < p.training_distance["audio"] < 1.5 for p in answers)
    assert not [r for r in caplog.records if "as far from the training data" in r.getMessage()] or any(
        p.far_from_training for p in answers
    )
    caplog.clear()
    for utterance in near:
        assert utterance.audio_features is not None
        utterance.audio_features = utterance.audio_features * 3 + 2
    with caplog.at_level(logging.WARNING):
        moved = pipeline(near)
    assert all("audio" in p.far_from_training for p in moved)
    assert all(p.training_distance["audio"] > 1.5 for p in moved)
    said = [
        r.getMessage()
        for r in caplog.records
        if "as far from the training data" in r.getMessage() and "audio" in r.getMessage()
    ]
    assert len(said) == 1
    assert near[0].id in said[0]
    assert Prediction.from_dict(json.loads(json.dumps(moved[0].to_dict()))).training_distance == moved[0].training_distance


def test_a_checkpoint_that_does_not_know_says_nothing(trained: Path, store: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(trained, older)
    path = older / "llm_mer.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry["processor"].pop("training_ranges")["audio"]["utterances"] > 0
    path.write_text(json.dumps(entry), encoding="utf-8")
    (older / CHECKSUMS_FILE).unlink()
    write_checksums(older)
    (answer, *_) = MerPipeline.from_pretrained(older, device="cpu")(list(UtteranceStore.open(store).split("valid"))[:1])
    assert answer.training_distance == {}
    assert answer.far_from_training == []


def answered(number: int, distance: dict[str, float]) -> Prediction:
    return Prediction(str(number), "emotion", "en", "joy", training_distance=distance)


def test_groups_are_by_the_modality_that_is_farthest_from_near_to_far() -> None:
    answers = [
        answered(0, {"audio": 1.2, "vision": 0.3}),
        answered(1, {"audio": 0.4, "vision": 9.0}),
        answered(2, {"audio": 0.4, "vision": 0.9}),
        answered(3, {}),
    ]
    assert subsets_of(answers, [DISTANCE]) == [
        (DISTANCE, "within the training range"),
        (DISTANCE, "up to 1.5 × the training range"),
        (DISTANCE, "beyond 1.5 × the training range"),
    ]
    assert [p.far_from_training for p in answers] == [["audio"], ["vision"], [], []]


def test_a_split_is_warned_of_where_more_than_a_tenth_is_far() -> None:
    near = [answered(i, {"audio": 0.5}) for i in range(18)]
    assert find_far([*near, answered(18, {"audio": 2.0}), answered(19, {"audio": 1.5})]) == []
    (said,) = find_far([*near, *(answered(20 + i, {"audio": 2.0}) for i in range(3))])
    assert said.startswith("audio of 3 of 21 utterances is farther from the training data")


def test_an_evaluation_of_far_utterances_has_rows_by_distance(trained: Path, store: Path, tmp_path: Path) -> None:
    from llm_mer.data.store import write_store

    utterances = list(UtteranceStore.open(store).split("test"))
    for utterance in utterances[::2]:
        if utterance.audio_features is not None:
            utterance.audio_features = utterance.audio_features + 8
    moved = write_store(utterances, tmp_path / "moved")
    options = {"checkpoint": str(trained), "output": str(tmp_path / "out"), "resamples": 20}
    far, _ = evaluate(EvaluateConfig(data=[str(moved)], **options), progress=False)
    assert any("is farther from the training data" in warning for warning in far.warnings)
    assert {"within the training range", "beyond 1.5 × the training range"} <= {row.subset for row in far.rows}
    near, _ = evaluate(EvaluateConfig(data=[str(store)], **options), progress=False)
    assert not any("is farther from the training data" in warning for warning in near.warnings)
    assert "within the training range" not in {row.subset for row in near.rows}
    asked, _ = evaluate(EvaluateConfig(data=[str(store)], by=[DISTANCE], **options), progress=False)
    assert "within the training range" in {row.subset for row in asked.rows}
