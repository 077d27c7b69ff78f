"""Scores of the evaluation split: what is printed is what was counted."""

from __future__ import annotations

import pytest

from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import get_task
from llm_mer.training.evaluation import print_evaluation, summarise


def test_the_share_of_unparseable_answers_is_counted_and_every_language_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("emotion")
    answers = [Prediction(str(i), "emotion", "en", "joy", truth="joy") for i in range(4)]
    answers += [Prediction(str(i), "emotion", "xx", "anger", truth="joy") for i in range(3)]
    answers[0].value = None  # type: ignore[assignment]
    monkeypatch.setattr("llm_mer.training.evaluation.LANGUAGES", (*LANGUAGES, "xx"))
    metrics = summarise(answers, [task], "eval")
    assert metrics["eval_emotion_en_unparseable"] == 0.25
    print_evaluation(metrics, [task])
    assert capsys.readouterr().out.splitlines() == [
        "emotion [en] n=4: accuracy 0.750 (majority 1.000), unparseable 0.250 (scored answers)",
        "emotion [xx] n=3: accuracy 0.000 (majority 1.000), unparseable 0.000 (scored answers)",
    ]
