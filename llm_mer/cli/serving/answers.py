"""One clip asked about, and what the demo's page shows of each answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_mer.data.flags import FLAGS
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.features.media import audio_source, check_length
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

LEAST_SHOWN = 1e-4
"""Probabilities below it are shown as that."""


@dataclass(frozen=True)
class ShownAnswer:
    """One task's answer as it is shown.

    Attributes:
        task: its name. value: the label, or the score.
        probabilities: ``(answer, p)`` over all labels, or over all scores of the grid; empty where an adapter alone gives a
            score.
        remarks: a line each: what the answer was computed with, and how much of the probability it leaves out.
    """

    task: str
    value: str | float
    probabilities: tuple[tuple[str | float, float], ...]
    remarks: tuple[str, ...]


def ask(
    pipeline: MerPipeline,
    video: str | None,
    audio: str | None,
    text: str,
    language: str,
    most_seconds: float,
) -> list[Prediction]:
    """Every task's answer about a clip.

    Args:
        video, audio: files; the video's sound is taken where there is no other. language: or ``auto``.
        most_seconds: longest clip that is taken. It is looked at before anything is decoded.

    Raises:
        UserError: no input at all, or a file that cannot be used.
    """
    text = text.strip()
    if not (video or audio or text):
        raise UserError("give a video, a sound or a text")
    for path in (video, audio):
        if path:
            check_length(path, most_seconds)
    utterance = Utterance(
        id="demo",
        split="test",
        language="" if language == "auto" else language,
        text=text or None,
        audio=audio or (audio_source(video) if video else None),
        vision=video,
    )
    return pipeline([utterance])


def shown_answers(tasks: Sequence[Task], predictions: Iterable[Prediction]) -> list[ShownAnswer]:
    """What is shown of each task's prediction, in the order of the tasks.

    Raises:
        UserError: a task without its answer.
    """
    found = {prediction.task: prediction for prediction in predictions}
    missing = [task.name for task in tasks if task.name not in found]
    if missing:
        raise UserError(f"the checkpoint gave no answer to {', '.join(missing)}")
    return [_shown(task, found[task.name]) for task in tasks]


def _shown(task: Task, prediction: Prediction) -> ShownAnswer:
    answers: Sequence[str | float] = list(prediction.probabilities)
    if task.kind == "regression" and answers:
        answers = [float(score) for score in task.grid()]
    pairs = tuple(zip(answers, prediction.probabilities.values(), strict=True))
    return ShownAnswer(task.name, prediction.value, pairs, tuple(remarks(prediction)))


def remarks(prediction: Prediction) -> list[str]:
    """What a reader has to know of an answer, a line each."""
    lines = [f"asked in {prediction.language}"]
    if prediction.precision is None:
        lines.append("answered by the adapter's own head, without a language model")
    else:
        lines.append(f"computed in {prediction.precision}")
    if prediction.outside_mass is None:
        lines.append("probability outside the admissible answers: not known")
    else:
        lines.append(f"probability outside the admissible answers: {percent(math.exp(prediction.outside_mass))}")
    if prediction.interval is not None:
        low, high = prediction.interval
        lines.append(f"80 % within {low:+g} to {high:+g}, mean {prediction.mean:+.2f}")
    if prediction.temperature is not None:
        lines.append(f"calibrated with temperature {prediction.temperature:.3g}")
    if prediction.read_out is not None:
        lines.append(f"read off the hidden state: {_text(prediction.read_out)}")
    lines += [f"{flag.replace('_', ' ')}: {FLAGS[flag]}" for flag in prediction.flags]
    lines += [f"{w.start:.1f} to {w.end:.1f} s: {_text(w.value)}" for w in prediction.windows]
    if prediction.head_value is not None and prediction.precision is not None:
        lines.append(f"the adapter's own head: {_text(prediction.head_value)}")
    return lines


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:+.2f}"


def percent(probability: float) -> str:
    """``0.8 %``, ``95.7 %``, and ``below 0.01 %`` for what is less."""
    if probability < LEAST_SHOWN:
        return f"below {100 * LEAST_SHOWN:g} %"
    return f"{100 * probability:.{2 if probability < 0.1 else 3}g} %"
