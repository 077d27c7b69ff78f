"""Answers that hold no numbers are refused, and no JSON line holds NaN."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate
from llm_mer.evaluation.rows import Evaluation, Row, load_predictions, save_predictions
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction, require_finite_answers
from llm_mer.inference.predictor import Predictor

SOUND = Prediction("u", "emotion", "en", "joy", {"joy": 0.5}, [-0.7], -3.0, truth="joy", diagnostics={"gate": [[0.5]]})


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose scores are NaN, as in a type too narrow for them."""
    fill = Predictor._fill_value

    def spoilt(self: Predictor, prediction: Any, task: Any, log_probs: Any, *rest: Any) -> None:
        fill(self, prediction, task, log_probs * np.nan, *rest)

    monkeypatch.setattr(Predictor, "_fill_value", spoilt)


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": {"joy": math.nan}},
        {"log_probabilities": [-math.inf]},
        {"outside_mass": math.nan},
        {"interval": (0.0, math.inf)},
        {"value": math.nan},
        {"diagnostics": {"gate": [[0.1], [math.nan]]}},
    ],
)
def test_any_number_that_is_none_makes_an_answer_no_answer(change: dict[str, Any]) -> None:
    require_finite_answers([SOUND])
    with pytest.raises(UserError, match="utterance 'u': task 'emotion': the answer holds NaN or infinity"):
        require_finite_answers([SOUND, dataclasses.replace(SOUND, **change)])


@pytest.mark.usefixtures("overflowing")
def test_nothing_is_scored_of_answers_that_are_none(trained: Path, store: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], output=str(tmp_path), tasks=["emotion"])
    with pytest.raises(UserError, match=r"utterance '.*': task 'emotion': the answer holds NaN"):
        evaluate(config, progress=False)
    with pytest.raises(UserError, match="the answer holds NaN or infinity; the model overflows or is damaged"):
        MerPipeline.from_pretrained(trained)(text="I am so happy", audio_features=np.ones((3, 6), np.float32))


def test_files_hold_null_for_what_is_not_known_and_give_it_back(tmp_path: Path) -> None:
    row = Row("as is", "emotion", "en", "", 3, 0.0, {"ua": math.nan, "wa": 0.5}, {}, {"ua": math.inf})
    Evaluation("x", {}, "d", "test", 0, 10, [row]).save(tmp_path)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = Evaluation.load(tmp_path).rows[0]
    assert math.isnan(found.metrics["ua"])
    assert found.metrics["wa"] == 0.5
    odd = dataclasses.replace(SOUND, diagnostics={"gate": [[math.nan, 0.25]]})
    save_predictions(tmp_path / "predictions.jsonl", {"as is": [odd]})
    line = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert line["diagnostics"] == {"gate": [[None, 0.25]]}
    assert repr(load_predictions(tmp_path / "predictions.jsonl")["as is"][0]) == repr(odd)
