"""What the demo's page shows of predictions: every task, with what its answer was computed with and what it leaves out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.media_files import tone, write_wav

from llm_mer.cli.serving.answers import ask, percent, remarks, shown_answers
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task

EMOTION, SIX, SENTIMENT = get_task("emotion"), get_task("iemocap4"), get_task("sentiment")


def label_answer(task: Any, first: float, **changes: Any) -> Prediction:
    names = task.label_names
    shares = {name: first if name == names[0] else (1 - first) / (len(names) - 1) for name in names}
    return Prediction(
        "demo", task.name, "en", names[0], shares, precision="bfloat16", outside_mass=math.log(0.25), **changes
    )


def score_answer() -> Prediction:
    grid = SENTIMENT.grid()
    shares = {SENTIMENT.format_score(score): 1 / len(grid) for score in grid}
    return Prediction(
        "demo", "sentiment", "zh", 0.0, shares, precision="float32", outside_mass=-15.94, mean=0.05, interval=(-2.4, 2.4)
    )


def test_every_task_is_shown_in_the_order_of_the_checkpoint() -> None:
    tasks = [EMOTION, SENTIMENT, SIX]
    found = shown_answers(tasks, [label_answer(SIX, 0.7), score_answer(), label_answer(EMOTION, 0.4)])
    assert [shown.task for shown in found] == [task.name for task in tasks]
    assert dict(found[0].probabilities)[EMOTION.label_names[0]] == 0.4
    assert dict(found[2].probabilities)[SIX.label_names[0]] == 0.7
    assert len(found[2].probabilities) == SIX.num_classes


def test_a_score_is_shown_with_its_whole_distribution() -> None:
    shown = shown_answers([SENTIMENT], [score_answer()])[0]
    assert shown.value == 0.0
    assert [score for score, _ in shown.probabilities] == list(SENTIMENT.grid())
    assert sum(share for _, share in shown.probabilities) == pytest.approx(1)
    assert "80 % within -2.4 to +2.4, mean +0.05" in shown.remarks


def test_an_adapters_score_has_a_number_and_no_distribution() -> None:
    shown = shown_answers([SENTIMENT], [Prediction("demo", "sentiment", "en", 1.25, head_value=1.25)])[0]
    assert (shown.value, shown.probabilities) == (1.25, ())
    assert "answered by the adapter's own head, without a language model" in shown.remarks
    assert "probability outside the admissible answers: not known" in shown.remarks


def test_precision_language_and_the_mass_outside_stand_beside_each_answer() -> None:
    lines = remarks(label_answer(EMOTION, 0.4, temperature=1.25, head_value="joy", read_out="fear"))
    assert lines == [
        "asked in en",
        "computed in bfloat16",
        "probability outside the admissible answers: 25 %",
        "calibrated with temperature 1.25",
        "read off the hidden state: fear",
        "the adapter's own head: joy",
    ]
    assert "probability outside the admissible answers: below 0.01 %" in remarks(score_answer())


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, "100 %"), (0.9994, "99.9 %"), (0.25, "25 %"), (0.0083, "0.83 %"), (1e-4, "0.01 %"), (9e-5, "below 0.01 %")],
)
def test_a_probability_is_rounded_and_never_to_nothing(probability: float, text: str) -> None:
    assert percent(probability) == text


def test_a_task_without_an_answer_is_named() -> None:
    with pytest.raises(UserError, match="no answer to sentiment"):
        shown_answers([EMOTION, SENTIMENT], [label_answer(EMOTION, 0.4)])


class Unasked:
    """A pipeline that must not be asked."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("the model was asked")


def test_no_input_and_a_clip_that_is_too_long_are_refused_before_the_model_is_asked(tmp_path: Path) -> None:
    pipeline: Any = Unasked()
    with pytest.raises(UserError, match="give a video, a sound or a text"):
        ask(pipeline, None, None, " \n", "auto", 10.0)
    sound = write_wav(tmp_path / "sound.wav", tone(200, 3.0, 16_000))
    with pytest.raises(UserError, match=r"at most 2 s"):
        ask(pipeline, None, str(sound), "hello", "en", 2.0)


def test_a_checkpoint_of_two_tasks_shows_both_answers(trained: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    predictions = ask(pipeline, None, None, "the train leaves at nine", "auto", 10.0)
    emotion, sentiment = shown_answers(pipeline.tasks, predictions)
    assert (emotion.task, sentiment.task) == ("emotion", "sentiment")
    assert max(emotion.probabilities, key=lambda pair: pair[1])[0] == emotion.value
    assert len(sentiment.probabilities) == len(SENTIMENT.grid())
    for shown in (emotion, sentiment):
        assert {"asked in en", "computed in float32"} <= set(shown.remarks)
        assert any(line.startswith("probability outside the admissible answers: ") for line in shown.remarks)
