"""What is wrong with a recording stands in its answer, is said once, and has scores of its own in an evaluation."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from conftest import make_utterances

from llm_mer.cli.serving.answers import remarks
from llm_mer.data.store import write_store
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.evaluation.subsets import FLAG, FLAGGED, UNFLAGGED, subsets_of
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction


def test_flags_stand_in_the_answer_and_are_said_once(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = make_utterances("test", 3, dialogues=False)
    quiet = [dataclasses.replace(u, flags=("low_level",)) for u in (first, second)]
    pipeline = MerPipeline.from_pretrained(trained)
    with caplog.at_level(logging.WARNING, "llm_mer"):
        found = pipeline([*quiet, third], tasks=["emotion"]) + pipeline(quiet, tasks=["emotion"])
    assert [p.flags for p in found] == [["low_level"]] * 2 + [[]] + [["low_level"]] * 2
    assert [r.getMessage() for r in caplog.records] == [
        "utterance 'test-000': low_level (no 100 ms of the sound reach -50 dBFS); `flags` of an answer says so"
    ]
    assert "flags" not in found[2].to_dict()
    assert Prediction.from_dict(json.loads(json.dumps(found[0].to_dict()))).flags == ["low_level"]
    assert "low level: no 100 ms of the sound reach -50 dBFS" in remarks(found[0])
    unflagged = pipeline([first], tasks=["emotion"])[0]
    assert unflagged.log_probabilities == pytest.approx(found[0].log_probabilities, abs=1e-4)  # a flag changes no answer


def test_an_evaluation_scores_flagged_recordings_apart_where_there_are_any(trained: Path, tmp_path: Path) -> None:
    utterances = make_utterances("test", 8)
    marked = [
        dataclasses.replace(u, flags=("silence", "frozen_pictures") if i < 3 else ()) for i, u in enumerate(utterances)
    ]

    def rows(name: str, data: list) -> tuple[dict[str, int], list[str]]:
        store = write_store(data, tmp_path / name)
        config = EvaluateConfig(str(trained), [str(store)], tasks=["emotion"], resamples=5)
        evaluation, _ = evaluate(config, progress=False)
        whole = [row for row in evaluation.rows if row.language == "all" and row.by == FLAG]
        return {row.subset: row.n for row in whole}, evaluation.warnings

    found, warnings = rows("marked", marked)
    assert found == {FLAGGED: 3, UNFLAGGED: 5}
    assert "flags of 3 of 8 utterances: silence 3, frozen_pictures 3; their scores stand apart" in warnings
    found, warnings = rows("plain", utterances)
    assert found == {}
    assert not any("flags" in warning for warning in warnings)


def test_where_all_are_flagged_there_are_no_others() -> None:
    flagged = Prediction("a", "emotion", "en", "joy", flags=["silence"], tags=("loud",))
    assert subsets_of([flagged]) == [("tag", "loud"), (FLAG, FLAGGED)]
    assert subsets_of([flagged, dataclasses.replace(flagged, flags=[], tags=())])[1:] == [(FLAG, FLAGGED), (FLAG, UNFLAGGED)]
