"""Rare classes in losses over answers: class weights, and logit adjustment by the logarithm of the training priors.

For class ``c`` with ``n_c`` of ``N`` training questions of its task, ``C`` of whose classes occur:

    balanced weight          w_c = N / (C n_c)                 (King and Zeng 2001; scikit-learn's ``balanced``)
    logit adjustment         s_c + τ log π_c,  π_c = n_c / N   (Menon et al. 2021, equation 10)

A question's loss is multiplied by the weight of its true class; the mean of balanced weights over the training questions
is 1. The adjustment stands in the training loss alone: answers are scored without it, hence for balanced error at τ = 1.
A class that no training question has is not adjusted, or it would be raised above what is learnt of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_mer.data.dataset import MerDataset, Question
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task

BALANCED = "balanced"


@dataclass(frozen=True)
class ClassBalance:
    """By task, for each of its classes in order: the ``weights`` of losses and the ``adjustments`` of scores."""

    weights: Mapping[str, Sequence[float]]
    adjustments: Mapping[str, Sequence[float]]

    def weight(self, question: Question) -> float:
        """Of a question's loss; 1 for a number."""
        if question.task.name not in self.weights:
            return 1.0
        return self.weights[question.task.name][question.task.class_index(str(question.truth))]


def class_balance(class_weights: Sequence[str], tau: float, train: MerDataset) -> ClassBalance | None:
    """That of a run's options; None where neither is asked for. Classes are counted over all training questions.

    Args:
        class_weights: ``["balanced"]``, or ``TASK.LABEL=WEIGHT`` entries; labels that are not named weigh 1. tau: of the
            adjustment, 0 for none.

    Raises:
        UserError: an entry that is none, a task or label that the training does not have, a weight that is not above 0, no
            classification task, or one of which votes are learnt.
    """
    if not class_weights and tau == 0:
        return None
    tasks = {q.task.name: q.task for q in train.questions if q.task.kind == "classification"}
    voted = sorted({question.task.name for question in train.questions if question.votes is not None})
    if voted:
        raise UserError(
            f"class_weights, logit_adjustment: weigh and count labels, and of task {voted[0]!r} the distribution of votes "
            "is learnt; say vote_targets: majority"
        )
    if not tasks:
        raise UserError("class_weights, logit_adjustment: the training has no classification task")
    counts = {name: _counts(task, train) for name, task in tasks.items()}
    if list(class_weights) == [BALANCED]:
        weights = {name: _balanced(found) for name, found in counts.items()}
    else:
        weights = _named_weights(class_weights, tasks)
    adjustments = {name: [0.0] * len(n) for name, n in counts.items()}
    if tau:
        for name, found in counts.items():
            adjustments[name] = [tau * math.log(n / sum(found)) if n else 0.0 for n in found]
    return ClassBalance(weights, adjustments)


def _counts(task: Task, train: MerDataset) -> list[int]:
    truths = [task.class_index(str(question.truth)) for question in train.questions if question.task.name == task.name]
    return [truths.count(index) for index in range(task.num_classes)]


def _balanced(counts: Sequence[int]) -> list[float]:
    occurring = sum(n > 0 for n in counts)
    return [sum(counts) / (occurring * n) if n else 1.0 for n in counts]


def _named_weights(entries: Sequence[str], tasks: Mapping[str, Task]) -> dict[str, list[float]]:
    weights = {name: [1.0] * task.num_classes for name, task in tasks.items()}
    for entry in entries:
        place, _, value = entry.partition("=")
        name, _, label = place.strip().partition(".")
        try:
            weight = float(value)
        except ValueError:
            raise UserError(
                f"class_weights: {entry!r} is not TASK.LABEL=WEIGHT, e.g. emotion.joy=2; alone, say {BALANCED}"
            ) from None
        if name not in tasks:
            raise UserError(f"class_weights: {entry!r} names task {name!r}; classification tasks here: {', '.join(tasks)}")
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"class_weights: {entry!r}; a weight must be above 0 and finite")
        weights[name][tasks[name].class_index(label, f"class_weights: {entry}")] = weight
    return weights
