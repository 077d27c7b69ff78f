"""A report shows scores of the model that lies around them, or says that it cannot know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate_checkpoint
from llm_mer.reporting.facts import load_evaluation


def test_scores_of_a_model_that_was_trained_again_are_refused_and_old_ones_are_warned_of(
    trained: Path, store: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_checkpoint(EvaluateConfig(checkpoint=str(checkpoint), data=[str(store)], limit=4, resamples=10))
    warnings = load_evaluation(str(checkpoint)).evaluation.warnings
    assert not any("which model" in text for text in warnings)
    path = checkpoint / "evaluation" / "evaluation.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    moved = Path(shutil.copytree(checkpoint, tmp_path / "moved"))
    assert load_evaluation(str(moved)).evaluation.checkpoint_sha256 == entry["checkpoint_sha256"]

    description = checkpoint / "llm_mer.json"
    description.write_text(description.read_text(encoding="utf-8").replace('"seed"', '"seed" '), encoding="utf-8")
    with pytest.raises(UserError, match=r"it scored another model \([0-9a-f]{12}\) than .*run holds now"):
        load_evaluation(str(checkpoint))

    path.write_text(json.dumps({k: v for k, v in entry.items() if k != "checkpoint_sha256"}), encoding="utf-8")
    assert any(
        "does not record which model it scored" in text for text in load_evaluation(str(checkpoint)).evaluation.warnings
    )


def test_an_evaluation_that_is_not_json_or_too_deep_is_one_line(tmp_path: Path) -> None:
    for content in ("{", "[" * 100_000, "[]"):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(UserError, match=r"evaluation\.json"):
            load_evaluation(str(tmp_path))


def test_a_score_or_an_answer_that_was_changed_is_refused(trained: Path, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    evaluate_checkpoint(EvaluateConfig(str(trained), data=[str(store)], output=str(folder), generate=True, resamples=10))
    load_evaluation(str(folder))
    answers, scores = folder / "predictions.jsonl", folder / "evaluation.json"
    whole = answers.read_text(encoding="utf-8"), scores.read_text(encoding="utf-8")

    answers.write_text(whole[0].replace('"value": "joy"', '"value": "fear"', 1), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"says accuracy 0\.\d+ of task emotion \(as is, .*\), the answers .* make it 0\.\d+: one"
    ):
        load_evaluation(str(folder))

    answers.write_text(whole[0], encoding="utf-8")
    entry = json.loads(whole[1])
    row = next(r for r in entry["rows"] if (r["task"], r["language"]) == ("sentiment", "zh"))
    row["metrics"]["mae"] -= 0.01
    scores.write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(UserError, match=r"says mae -?0\.\d+ of task sentiment \(as is, zh\), the answers in predictions"):
        load_evaluation(str(folder))
