"""Free texts of another system: read strictly, unparseable ones wrong, and every utterance answered exactly once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.cli.main import main
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.audit import AUDITED, audit
from llm_mer.evaluation.options import AuditConfig
from llm_mer.evaluation.rows import Evaluation, load_predictions


def write(path: Path, answers: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in answers), encoding="utf-8")
    return path


@pytest.fixture
def utterances(store: Path) -> list[Any]:
    return list(UtteranceStore.open(store).split("test"))


def right_answers(utterances: list[Any], english: bool = False) -> list[dict[str, Any]]:
    from llm_mer.prompting.tasks import get_task

    task = get_task("emotion")
    words = {language: dict(zip(task.label_names, task.words(language), strict=True)) for language in ("en", "zh")}
    return [
        {"id": u.id, "text": words["en" if english else u.language][u.labels["emotion"]], "model": "another"}
        for u in utterances
    ]


def test_texts_are_answers_only_where_the_task_reads_them(store: Path, utterances: list[Any], tmp_path: Path) -> None:
    answers = right_answers(utterances)
    answers[0]["text"] = f" {answers[0]['text'].upper()}. "  # forgiven
    spoilt = {1: "I think it is joy", 2: "", 3: "joy or anger"}
    for place, text in spoilt.items():
        answers[place]["text"] = text
    evaluation, predictions = audit(
        AuditConfig(str(write(tmp_path / "a.jsonl", answers)), str(store), "emotion", resamples=50)
    )
    row = evaluation.find(AUDITED, "emotion")
    assert row is not None
    assert row.n == len(utterances)
    assert row.unparseable_rate == pytest.approx(3 / len(utterances))
    assert row.metrics["accuracy"] == pytest.approx(1 - 3 / len(utterances))
    assert [p.parsed for p in predictions].count(None) == 3
    truths = [u.labels["emotion"] for u in utterances]
    majority = max(np.unique(truths, return_counts=True)[1]) / len(truths)
    assert row.baseline["accuracy"] == pytest.approx(majority)
    assert row.unit == "dialogue"
    assert row.units == len({u.dialogue_id for u in utterances})


def test_a_label_in_another_language_is_no_answer(store: Path, utterances: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", right_answers(utterances, english=True))
    evaluation, _ = audit(AuditConfig(str(path), str(store), "emotion", resamples=20))
    for language, accuracy in (("en", 1.0), ("zh", 0.0)):
        row = evaluation.find(AUDITED, "emotion", language)
        assert row is not None
        assert row.metrics["accuracy"] == accuracy


def test_scores_are_read_as_numbers_within_the_range(store: Path, utterances: list[Any], tmp_path: Path) -> None:
    answers = [{"id": u.id, "text": f"{u.labels['sentiment'] + 0.5 * (-1) ** i:.2f}"} for i, u in enumerate(utterances)]
    answers[0]["text"] = "about 1"
    answers[1]["text"] = "7"
    evaluation, _ = audit(AuditConfig(str(write(tmp_path / "a.jsonl", answers)), str(store), "sentiment", resamples=20))
    row = evaluation.find(AUDITED, "sentiment")
    assert row is not None
    assert row.unparseable_rate == pytest.approx(2 / len(utterances))


def test_the_command_writes_what_an_evaluation_writes(
    store: Path, utterances: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = right_answers(utterances)
    answers[1]["text"] = "no idea"
    path = write(tmp_path / "a.jsonl", answers)
    argv = ["audit", str(path), "--data", str(store), "--task", "emotion", "--output", str(tmp_path / "out")]
    assert main([*argv, "--resamples", "20"]) == 0
    shown = capsys.readouterr().out
    assert "unparseable, counted as wrong: 1 of 32, e.g. 'no idea' (1)" in shown
    assert Evaluation.load(tmp_path / "out").find(AUDITED, "emotion") is not None
    assert len(load_predictions(tmp_path / "out" / "predictions.jsonl")[AUDITED]) == 32


def test_ids_that_are_missing_unknown_or_there_twice_are_refused_with_their_number(
    store: Path, utterances: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = right_answers(utterances)
    cases = {
        r"2 of 32 utterances of .*, split 'test' have no answer, the first 'test-000'": right[2:],
        r"2 ids that .* does not hold, the first 'x'": [*right, {"id": "x", "text": "joy"}, {"id": "y", "text": "joy"}],
        r"1 line with an id that stands there before, the first 'test-003' again in .*:33": [*right, right[3]],
        r":2: text is None; it must be a text": [right[0], {"id": "test-001"}],
        r"it is empty": [],
    }
    import re

    for message, answers in cases.items():
        path = write(tmp_path / "a.jsonl", answers)
        assert main(["audit", str(path), "--data", str(store), "--task", "emotion"]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
    assert main(["audit", str(tmp_path / "gone.jsonl"), "--data", str(store), "--task", "emotion"]) == 2
    assert "gone.jsonl: no such file" in capsys.readouterr().err
