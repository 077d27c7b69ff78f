"""Training on annotators' votes: the cross-entropy of their distribution, in one pass, and the majority where it must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, make_utterances
from double_precision import build_double_trainer, doubled
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from llm_mer.data.store import write_store
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.model.read_out import read_out_losses
from llm_mer.training.answer_objectives import AnswerTargets, as_batch, question_losses, targets_from
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

VOTES = (None, {"joy": 2, "neutral": 1}, {"anger": 1, "sadness": 1}, {"fear": 3})
"""Of the utterances in turn; the third is a tie."""


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    """The synthetic corpus with votes in place of three of four labels."""
    found = []
    for utterance in [*make_utterances("train", 32), *make_utterances("valid", 8)]:
        counts = VOTES[int(utterance.id.split("-")[1]) % len(VOTES)]
        if counts is not None:
            labels = {name: value for name, value in utterance.labels.items() if name != "emotion"}
            utterance = dataclasses.replace(utterance, labels=labels, votes={"emotion": Votes(counts)})
        found.append(utterance)
    return write_store(found, tmp_path / "voted")


def targets(shares: np.ndarray) -> AnswerTargets:
    count, answers = shares.shape
    none = torch.full((count, answers), torch.nan)
    paths = torch.zeros(count, answers, 1, dtype=torch.long)
    return AnswerTargets(paths, torch.zeros(count, dtype=torch.long), none, none[:, 0], votes=torch.from_numpy(shares))


def test_the_loss_of_votes_is_the_divergence_from_them_and_their_entropy() -> None:
    random = np.random.default_rng(0)
    scores, shares = random.normal(size=(5, 6)), random.dirichlet(np.ones(6), size=5)
    shares[1] = [0, 1, 0, 0, 0, 0]
    log_probs = log_softmax(scores, axis=1)
    entropy = -np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0), axis=1)
    expected = rel_entr(shares, np.exp(log_probs)).sum(axis=1) + entropy
    found = question_losses(torch.from_numpy(scores), targets(shares))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert float(found[1]) == pytest.approx(-log_probs[1, 1])  # all votes for one label: the loss of that label


def test_the_gradient_is_the_difference_of_the_distributions_also_beside_questions_with_fewer_answers() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -torch.inf]], dtype=torch.float64, requires_grad=True)
    shares = np.array([[1 / 3, 2 / 3, 0.0], [0.5, 0.5, 0.0]])
    (gradient,) = torch.autograd.grad(question_losses(scores, targets(shares)).sum(), scores)
    expected = torch.softmax(scores.detach(), dim=1).numpy() - shares
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-12)


def test_votes_labels_and_numbers_share_a_batch_and_come_through_it() -> None:
    shares = torch.tensor([[torch.nan] * 3, [0.5, 0.5, 0.0], [torch.nan] * 3])
    paths = torch.zeros(3, 3, 1, dtype=torch.long)
    values = torch.tensor([[torch.nan] * 3, [torch.nan] * 3, [-1.0, 0.0, 1.0]])
    given = AnswerTargets(paths, torch.tensor([2, 0, 1]), values, torch.tensor([torch.nan, torch.nan, 0.2]), votes=shares)
    scores = torch.tensor(np.random.default_rng(1).normal(size=(3, 3)), requires_grad=True)
    mixed = question_losses(scores, targets_from(as_batch(given)))
    alone = question_losses(scores, dataclasses.replace(given, votes=None))
    assert torch.equal(mixed[[0, 2]], alone[[0, 2]])
    assert mixed[1].item() == pytest.approx(-torch.log_softmax(scores, dim=1)[1, :2].mean().item())
    assert bool(torch.isfinite(torch.autograd.grad(mixed.sum(), scores)[0]).all())


def naive_loss(trainer: Any, question: Any) -> Tensor:
    """From a forward pass of its own for each answer, over the votes as the data have them."""
    collator, processor = trainer.data_collator.collator, trainer.processor
    task, language = question.task, collator.dataset.language(question.row)
    read = collator.utterances([question.row], [task])
    inputs, prompt, scores = doubled(read.inputs.model_inputs()), read.prompts[0][0], []
    places = torch.zeros(1, len(prompt.ids), dtype=torch.bool)
    places[0, prompt.start : prompt.start + prompt.count] = True
    for answer in processor.answers(task, language):
        full = [*prompt.ids, *answer, processor.end_token_id]
        mask = torch.nn.functional.pad(places, (0, len(full) - len(prompt.ids)))
        logits = trainer.model(input_ids=torch.tensor([full]), pseudo_token_mask=mask, use_cache=False, **inputs).logits
        log_probs = torch.log_softmax(logits[0].double(), dim=-1)
        scores.append(sum(log_probs[place - 1, full[place]] for place in range(len(prompt.ids), len(full))))
    log_probs = torch.log_softmax(torch.stack(scores), dim=0)
    utterance = collator.dataset.utterance(question.row)
    if "emotion" not in utterance.votes:
        return -log_probs[task.class_index(utterance.labels["emotion"])]
    counts = utterance.votes["emotion"].counts
    return -sum(n / sum(counts.values()) * log_probs[task.label_names.index(name)] for name, n in counts.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])
def test_loss_and_gradients_are_those_of_a_pass_for_each_answer_over_the_votes(
    arguments: Callable[..., list[str]], backbones: dict[str, Path], voted: Path, architecture: str
) -> None:
    given = {"data": voted, "objective": "answers", "auxiliary_head": "true", "backbone": backbones[architecture]}
    trainer = build_double_trainer(arguments(**given))
    collator = trainer.data_collator.collator
    batch = doubled(collator([{"question": index} for index in range(4)]))
    assert batch["class_targets"].tolist()[2] == -100  # the own head learns nothing of a tie
    trainer.model.zero_grad()
    loss = trainer.compute_loss(
        trainer.model, {k: v for k, v in batch.items() if k not in ("class_targets", "score_targets")}
    )
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    questions = collator.dataset.questions[:4]
    assert [question.truth for question in questions][1:] == ["joy", None, "fear"]
    expected = torch.stack([naive_loss(trainer, question) for question in questions]).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is None:
            assert name not in found or float(found[name].abs().max()) == 0
            continue
        assert float((found[name] - parameter.grad).norm()) <= 5e-5 * float(parameter.grad.norm()) + 1e-9, name


def test_a_read_out_learns_votes_beside_labels_and_numbers() -> None:
    outputs = torch.tensor(np.random.default_rng(2).normal(size=(3, 4)), requires_grad=True)
    sizes, nan = {"emotion": 3, "sentiment": 1}, float("nan")
    votes = torch.tensor([[1 / 3, 2 / 3, 0.0], [nan] * 3, [nan] * 3], dtype=torch.float64)
    tasks, wanted = torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 0.5])
    found = read_out_losses(outputs, sizes, tasks, wanted, votes)
    log_probs = log_softmax(outputs.detach().numpy()[:, :3], axis=1)
    expected = [-(log_probs[0, 0] + 2 * log_probs[0, 1]) / 3, -log_probs[1, 2], abs(outputs[2, 3].item() - 0.5)]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)
    assert bool(torch.isfinite(torch.autograd.grad(found.sum(), outputs)[0]).all())


def test_a_run_trains_on_votes_ties_included_with_a_read_out(arguments: Callable[..., list[str]], voted: Path) -> None:
    given = {"data": voted, "objective": "answers", "read_out": "true", "max_steps": 2, "eval_strategy": "epoch"}
    trainer = build_trainer(parse_arguments(arguments(**given)))
    assert len(trainer.train_dataset) == 32
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss_read_out" in entry]
    assert all(np.isfinite(entry["loss_lm"]) and np.isfinite(entry["loss_read_out"]) for entry in logged)
    assert len(logged) == 2
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("given", [{"objective": "tokens"}, {"objective": "answers", "vote_targets": "majority"}])
def test_the_majority_alone_is_learnt_where_asked_and_by_tokens_and_it_is_said(
    arguments: Callable[..., list[str]], voted: Path, given: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(parse_arguments(arguments(data=voted, **given)))
    questions = trainer.data_collator.collator.dataset.questions
    assert len(questions) == len(trainer.train_dataset) == 24
    assert all(question.truth is not None and question.votes is None for question in questions)
    assert "of 24 training utterances with votes the majority is learnt, and 8 whose votes tie are left out" in caplog.text
    assert ("objective: answers can learn" in caplog.text) == (given["objective"] == "tokens")


def test_class_weights_and_adjustments_have_no_labels_to_count_in_votes(
    arguments: Callable[..., list[str]], voted: Path
) -> None:
    for changes in ({"class_weights": ["balanced"]}, {"logit_adjustment": 1.0}):
        with pytest.raises(UserError, match="of task 'emotion' the distribution of votes is learnt; say vote_targets: maj"):
            build_trainer(parse_arguments(arguments(data=voted, objective="answers", **changes)))
    given = {"objective": "answers", "class_weights": ["balanced"], "vote_targets": "majority"}
    build_trainer(parse_arguments(arguments(data=voted, **given)))
