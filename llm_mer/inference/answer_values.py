"""What answers a question: a distribution over its answers, what a read-out or a head says, or a pool of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.special import log_softmax, logsumexp

from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction
from llm_mer.model.read_out import read_out_score
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.pooling import point_scores, pool
from llm_mer.scoring.score_distribution import ScoreDistribution
from llm_mer.scoring.temperature import scale_by_temperature

SCORED, READ_OUT, POOLED = "scored", "read_out", "pooled"
ANSWERS: tuple[str, ...] = (SCORED, READ_OUT, POOLED)
"""What answers: the language model's scored answers, a read-out of its hidden state, or a pool of these and the head."""
HEAD = "head"
"""The adapter's own head, which never answers alone beside a language model."""
PoolWeights = Mapping[tuple[str, str], Mapping[str, float]]
"""``{(task, language): {distribution: weight}}``, distributions named ``scored``, ``read_out`` and ``head``."""


def fill_distribution(prediction: Prediction, task: Task, log_probabilities: np.ndarray, statistic: str) -> None:
    """Fill in the answer and its probabilities from ``(C,)`` log-probabilities over a task's answers.

    Args:
        statistic: which point of a score's distribution is its value: median, mean or mode.
    """
    probabilities = np.exp(log_probabilities.astype(np.float64))
    prediction.log_probabilities = [float(v) for v in log_probabilities]
    if task.kind == "classification":
        names = task.label_names
        prediction.value = names[int(log_probabilities.argmax())]
        prediction.probabilities = dict(zip(names, probabilities.round(6).tolist(), strict=True))
        return
    scores = ScoreDistribution(np.asarray(task.grid()), np.exp(log_probabilities)[None])
    low, high = scores.interval(0.8)[0]
    prediction.mean, prediction.median = float(scores.mean[0]), float(scores.median[0])
    prediction.mode, prediction.interval = float(scores.mode[0]), (float(low), float(high))
    points = {"median": prediction.median, "mean": prediction.mean, "mode": prediction.mode}
    prediction.value = points[statistic]
    texts = [task.format_score(v) for v in task.grid()]
    prediction.probabilities = dict(zip(texts, probabilities.round(6).tolist(), strict=True))


def fill_read_out(prediction: Prediction, task: Task, outputs: np.ndarray) -> None:
    """A task's outputs of the read-out, ``(C,)`` or ``(1,)``, as its answer beside the scored one."""
    if task.kind == "regression":
        prediction.read_out = read_out_score(task, float(outputs[0]))
        return
    prediction.read_out = task.label_names[int(outputs.argmax())]
    prediction.read_out_log_probabilities = (outputs - logsumexp(outputs)).tolist()


def poolable_scores(prediction: Prediction, task: Task) -> dict[str, np.ndarray]:
    """``(C,)`` scores of every distribution over a task's answers that a prediction of a language model carries.

    Scored answers are taken without their temperature; a number of the read-out or of the head is a normal distribution
    about it (:func:`~llm_mer.scoring.pooling.point_scores`). Empty where no language model answered.
    """
    if prediction.outside_mass is None or not prediction.log_probabilities:
        return {}
    scored = np.asarray(prediction.log_probabilities, dtype=np.float64)
    found = {SCORED: scale_by_temperature(scored, 1.0 / (prediction.temperature or 1.0))}
    if task.kind == "classification":
        beside = {READ_OUT: prediction.read_out_log_probabilities, HEAD: prediction.head_log_probabilities}
        return found | {name: log_softmax(values) for name, values in beside.items() if values is not None}
    grid = np.asarray(task.grid())
    points = {READ_OUT: prediction.read_out, HEAD: prediction.head_value}
    return found | {name: point_scores(grid, float(value)) for name, value in points.items() if value is not None}


def pooled_answer(prediction: Prediction, task: Task, weights: PoolWeights, statistic: str) -> Prediction:
    """The same with the pool of its distributions for its answer.

    Raises:
        UserError: no weights were fitted for the question, or for other distributions than the prediction carries.
    """
    own = weights.get((prediction.task, prediction.language))
    found = poolable_scores(prediction, task)
    if own is None or own.keys() != found.keys():
        fitted = "none" if own is None else ", ".join(own)
        raise UserError(
            f"answer: pooled, but for task {prediction.task!r} in language {prediction.language!r} the checkpoint keeps "
            f"weights for {fitted}, and its answers have {', '.join(found) or 'no language model'}; `llm-mer calibrate` "
            "fits them on validation data of that language, for a checkpoint with auxiliary_head: true or read_out: true"
        )
    log_probabilities = pool(np.stack(list(found.values())), np.array([own[name] for name in found]))
    answer = replace(prediction, outside_mass=None, temperature=None, pool_weights=dict(own))
    fill_distribution(answer, task, log_probabilities, statistic)
    return answer
