"""Losses over the distribution of a question's admissible answers, the very one that answers are scored by.

The loss of tokens (``objective: tokens``) asks the true answer to be likely among all texts, token by token, and knows
nothing of the other answers. Here all ``C`` admissible answers of a question are scored in one pass, under the mask of
evaluation, and the loss is one over ``p(c) = exp(s_c) / Σ_k exp(s_k)`` with ``s_c = log p(answer c | prompt)``: what is
trained is what is reported. A label has the cross entropy, annotators' votes ``v`` (:mod:`llm_mer.data.votes`) theirs,
``-Σ_c v_c log p(c)``: the Kullback-Leibler divergence ``KL(v ‖ p)`` and the votes' own entropy, which nothing changes. A
number on the grid ``g_1 < … < g_C`` has one of :data:`~llm_mer.training.objectives.NUMBER_OBJECTIVES`, in units of the
task's range, so that a score from 0 to 100 weighs as much as one from -3 to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_mer.training.objectives import CROSS_ENTROPY, CRPS


@dataclass(frozen=True)
class AnswerTargets:
    """The answers of each of ``B`` questions, and the true one.

    Attributes:
        paths: ``(B, C, D)`` for each answer, which of the batch's token log-probabilities it is the sum of; -1 after its
            last, and all -1 where a question has fewer than ``C`` answers.
        truth: ``(B,)`` index of the true answer. values: ``(B, C)`` the number each answer says, NaN for labels.
        scores: ``(B,)`` the true number, which need not lie on the grid; NaN for labels.
        weights: ``(B,)`` of the questions' training losses. adjustments: ``(B, C)`` added to the scores in training; both
            None where classes are left as they come (:mod:`llm_mer.training.class_balance`).
        votes: ``(B, C)`` shares of the votes for each label, 0 for answers a question does not have, NaN rows for questions
            without votes; None where none has any. A tie's ``truth`` is any of its labels, and is not read.
    """

    paths: Tensor
    truth: Tensor
    values: Tensor
    scores: Tensor
    weights: Tensor | None = None
    adjustments: Tensor | None = None
    votes: Tensor | None = None

    NAMES = ("answer_paths", "answer_truth", "answer_values", "answer_scores")
    """Under which a batch carries them, in the order of the attributes."""
    BALANCE_NAMES = ("answer_weights", "answer_adjustments")
    """Those of the next two, where there are some."""
    VOTES_NAME = "answer_votes"

    @property
    def admissible(self) -> Tensor:
        """``(B, C)`` whether a question has so many answers."""
        return self.paths[..., 0] >= 0


def answer_scores(token_log_probs: Tensor, targets: AnswerTargets) -> Tensor:
    """``s_c = log p(answer c | prompt)``: ``(B, C)`` float32, ``-inf`` where a question has fewer answers.

    Args:
        token_log_probs: of all tokens of all answers of the batch, of any shape; ``targets.paths`` counts through it.
    """
    flat = token_log_probs.float().flatten()
    parts = torch.where(targets.paths >= 0, flat[targets.paths.clamp(min=0)], 0.0)
    return parts.sum(dim=-1).masked_fill(~targets.admissible, -torch.inf)


def training_losses(scores: Tensor, targets: AnswerTargets, number_objective: str = CRPS) -> Tensor:
    """:func:`question_losses` with the classes' weights and adjustments: ``w_y · loss(s + τ log π)``."""
    if targets.adjustments is not None:
        scores = scores + targets.adjustments
    losses = question_losses(scores, targets, number_objective)
    return losses if targets.weights is None else losses * targets.weights


def question_losses(scores: Tensor, targets: AnswerTargets, number_objective: str = CRPS) -> Tensor:
    """The loss of each question: ``(B, C)`` of :func:`answer_scores` to ``(B,)``."""
    log_probs = torch.log_softmax(scores, dim=1)
    cross_entropy = -log_probs.gather(1, targets.truth.unsqueeze(1)).squeeze(1)
    if targets.votes is not None:
        voted = ~torch.isnan(targets.votes[:, 0])
        shares = torch.nan_to_num(targets.votes)
        # Answers that a question does not have are at -inf, and 0 · -inf is NaN.
        terms = torch.where(shares > 0, shares * log_probs, 0.0)
        cross_entropy = torch.where(voted, -terms.sum(dim=1), cross_entropy)
    if number_objective == CROSS_ENTROPY:
        return cross_entropy
    is_number = ~torch.isnan(targets.scores)
    # Labels get finite numbers that nobody reads: a NaN would reach their gradient, though its weight is zero.
    truth = torch.nan_to_num(targets.scores)
    values = torch.where(is_number.unsqueeze(1), targets.values, 0.0)
    # A shorter grid goes on at its end, not at 0, which need not lie in the task's range.
    end = torch.nan_to_num(values, nan=-torch.inf).amax(dim=1, keepdim=True)
    values = torch.where(torch.isnan(values), end, values)
    probs = log_probs.exp()  # 0 where a question has fewer answers
    span = (values.amax(dim=1) - values.amin(dim=1)).clamp(min=torch.finfo(values.dtype).tiny)
    loss = (probs * (values - truth.unsqueeze(1)).abs()).sum(dim=1)
    if number_objective == CRPS:
        loss = loss - _half_expected_difference(probs, values)
    # The span is that of the grid, which ends where the task's range does.
    return torch.where(is_number, loss / torch.where(is_number, span, 1.0), cross_entropy)


def _half_expected_difference(probs: Tensor, values: Tensor) -> Tensor:
    """``½ E|X - X'|`` of two draws: ``Σ_k F_k (1 - F_k) (g_{k+1} - g_k)`` on a rising grid, ``(B, C)`` to ``(B,)``."""
    below = probs.cumsum(dim=1)[:, :-1]
    return (below * (1 - below) * (values[:, 1:] - values[:, :-1])).sum(dim=1)


def targets_from(batch: dict[str, Tensor]) -> AnswerTargets:
    """Take the targets out of a batch."""
    paths, truth, values, scores = (batch.pop(name) for name in AnswerTargets.NAMES)
    weights, adjustments = (batch.pop(name, None) for name in AnswerTargets.BALANCE_NAMES)
    return AnswerTargets(paths, truth, values, scores, weights, adjustments, batch.pop(AnswerTargets.VOTES_NAME, None))


def as_batch(targets: AnswerTargets) -> dict[str, Tensor]:
    """The targets as tensors of a batch; :func:`targets_from` reads them back."""
    values: Sequence[Tensor] = (targets.paths, targets.truth, targets.values, targets.scores)
    found = dict(zip(AnswerTargets.NAMES, values, strict=True))
    if targets.weights is not None and targets.adjustments is not None:
        found |= dict(zip(AnswerTargets.BALANCE_NAMES, (targets.weights, targets.adjustments), strict=True))
    if targets.votes is not None:
        found[AnswerTargets.VOTES_NAME] = targets.votes
    return found
