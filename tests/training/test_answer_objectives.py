"""Losses over admissible answers: their closed forms, and the batch that scores all answers at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, adapter_weights
from double_precision import build_double_trainer, doubled
from torch import Tensor

from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.inference.predictor import Predictor
from llm_mer.training.answer_objectives import AnswerTargets, answer_scores, question_losses
from llm_mer.training.objectives import ABSOLUTE_ERROR, CROSS_ENTROPY, CRPS
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

ROWS = [{"question": index} for index in range(8)]


def integrated_crps(probs: np.ndarray, grid: np.ndarray, truth: float) -> float:
    """``∫ (F(x) - 1[x ≥ truth])² dx``, piece by piece, as Gneiting and Raftery define the score."""
    edges = np.unique(np.concatenate([grid, [truth]]))
    total = 0.0
    for left, right in itertools.pairwise(edges):
        below = probs[grid <= left].sum()
        total += (below - float(left >= truth)) ** 2 * (right - left)
    return total


def targets(values: np.ndarray, scores: list[float], truth: list[int], fewer: int = 0) -> AnswerTargets:
    """Answers of one token each; the first question has ``fewer`` of them than the others."""
    count, answers = len(scores), values.shape[1]
    paths = torch.arange(count * answers).view(count, answers, 1)
    if fewer:
        paths[0, -fewer:] = -1
    return AnswerTargets(paths, torch.tensor(truth), torch.from_numpy(values), torch.tensor(scores))


@pytest.mark.parametrize("objective", [CRPS, ABSOLUTE_ERROR])
@pytest.mark.parametrize("grid", [np.linspace(1, 5, 5), np.linspace(-5, -1, 5)])
def test_a_number_has_one_loss_beside_whatever_other_questions_also_where_0_is_not_in_its_range(
    objective: str, grid: np.ndarray
) -> None:
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 9))).float()
    padded = targets(np.stack([np.r_[grid, np.full(4, np.nan)], np.linspace(-3, 3, 9)]), [grid[1], 1.5], [1, 6], fewer=4)
    alone = targets(grid[None], [grid[1]], [1])
    beside = question_losses(answer_scores(logits, padded), padded, objective)[0]
    torch.testing.assert_close(beside, question_losses(answer_scores(logits[:1, :5], alone), alone, objective)[0])


@pytest.mark.parametrize("objective", [CRPS, ABSOLUTE_ERROR, CROSS_ENTROPY])
def test_losses_of_numbers_and_labels_equal_their_definitions(objective: str) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4, 9))
    grid = np.linspace(-2.0, 2.0, 9)
    values = np.stack([np.full(9, np.nan), grid, grid, grid * 25])
    scores, truth = [float("nan"), 0.3, -2.0, 50.0], [2, 5, 0, 8]
    asked = targets(values, scores, truth, fewer=3)
    log_probs = torch.from_numpy(logits).float()
    found = question_losses(answer_scores(log_probs, asked), asked, objective)
    expected = []
    for row in range(4):
        kept = logits[row, :6] if row == 0 else logits[row]
        probs = np.exp(kept) / np.exp(kept).sum()
        if row == 0 or objective == CROSS_ENTROPY:
            expected.append(-np.log(probs[truth[row]]))
            continue
        span = values[row, -1] - values[row, 0]
        if objective == CRPS:
            expected.append(integrated_crps(probs, values[row], scores[row]) / span)
        else:
            expected.append((probs * np.abs(values[row] - scores[row])).sum() / span)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


def test_a_shorter_grid_beside_a_longer_one_has_the_loss_it_has_alone() -> None:
    random = np.random.default_rng(1)
    logits = torch.from_numpy(random.normal(size=(2, 9))).float()
    values = np.stack([np.r_[np.linspace(0, 1, 5), np.full(4, np.nan)], np.linspace(-3, 3, 9)])
    together = targets(values, [0.4, 1.1], [2, 6], fewer=4)
    alone = targets(values[:1, :5], [0.4], [2])
    for objective in (CRPS, ABSOLUTE_ERROR, CROSS_ENTROPY):
        both = question_losses(answer_scores(logits, together), together, objective)
        one = question_losses(answer_scores(logits[:1, :5], alone), alone, objective)
        torch.testing.assert_close(both[:1], one)


def test_gradients_are_finite_where_labels_numbers_and_padding_share_a_batch() -> None:
    values = np.stack([np.full(4, np.nan), np.linspace(0, 1, 4)])
    asked = targets(values, [float("nan"), 0.5], [0, 1], fewer=2)
    logits = torch.tensor([[0.0, 100.0, 0.0, 0.0], [-200.0, 3.0, 200.0, 0.0]], requires_grad=True)
    for objective in (CRPS, ABSOLUTE_ERROR, CROSS_ENTROPY):
        (gradient,) = torch.autograd.grad(question_losses(answer_scores(logits, asked), asked, objective).sum(), logits)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient[0].abs().sum()) > 0
        assert float(gradient[0, 2:].abs().sum()) == 0  # answers that the first question does not have


def built(arguments: Callable[..., list[str]], **changes: Any) -> Any:
    given = {"tasks": ["emotion", "sentiment"], "objective": "answers", "auxiliary_head": "true", **changes}
    return build_double_trainer(arguments(**given))


def without_auxiliary_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch that only the language model learns from."""
    return {name: value for name, value in batch.items() if name not in ("class_targets", "score_targets")}


def gradients(trainer: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def naive_loss(trainer: Any, question: Any) -> Tensor:
    """The loss of one question, from a forward pass of its own for each answer: no tree, no mask, no batch."""
    collator, processor = trainer.data_collator.collator, trainer.processor
    task, language = question.task, collator.dataset.language(question.row)
    read = collator.utterances([question.row], [task])
    inputs = doubled(read.inputs.model_inputs())
    prompt, scores = read.prompts[0][0], []
    places = torch.zeros(1, len(prompt.ids), dtype=torch.bool)
    places[0, prompt.start : prompt.start + prompt.count] = True
    for answer in processor.answers(task, language):
        full = [*prompt.ids, *answer, processor.end_token_id]
        mask = torch.nn.functional.pad(places, (0, len(full) - len(prompt.ids)))
        logits = trainer.model(input_ids=torch.tensor([full]), pseudo_token_mask=mask, use_cache=False, **inputs).logits
        log_probs = torch.log_softmax(logits[0].double(), dim=-1)
        scores.append(sum(log_probs[place - 1, full[place]] for place in range(len(prompt.ids), len(full))))
    stacked = torch.stack(scores)
    log_probs = stacked - stacked.logsumexp(0)
    if task.kind == "classification":
        return -log_probs[task.class_index(question.truth)]
    grid, truth = torch.tensor(task.grid(), dtype=torch.float64), float(question.truth)
    distance = (grid[:, None] - grid[None, :]).abs()
    probs = log_probs.exp()
    # The energy form of the score: E|X - y| - ½ E|X - X'|.
    crps = (probs * (grid - truth).abs()).sum() - 0.5 * probs @ distance @ probs
    return crps / (grid[-1] - grid[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_a_pass_for_each_answer(
    arguments: Callable[..., list[str]], backbones: dict[str, Any], architecture: str, attention: str
) -> None:
    trainer = built(arguments, backbone=str(backbones[architecture]), attn_implementation=attention)
    collator = trainer.data_collator.collator
    rows = ROWS[:4]
    batch = doubled(collator(rows))
    assert batch["labels"].shape == (4,)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(
        trainer.model, {k: v for k, v in batch.items() if k not in ("class_targets", "score_targets")}
    )
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    questions = [collator.dataset.questions[row["question"]] for row in rows]
    assert {question.task.name for question in questions} == {"emotion", "sentiment"}
    expected_loss = torch.stack([naive_loss(trainer, question) for question in questions]).mean()
    expected_loss.backward()
    torch.testing.assert_close(loss.double(), expected_loss, rtol=2e-6, atol=0)
    assert any("lora_" in name for name in found)
    assert any("fusion_adapter" in name for name in found)
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is None:
            assert name not in found or float(found[name].abs().max()) == 0
            continue
        # Norms, rotations and the loss are float32 inside, and set the tolerance.
        assert float((found[name] - parameter.grad).norm()) <= 5e-5 * float(parameter.grad.norm()) + 1e-9, name


def test_logits_made_in_parts_change_neither_loss_nor_gradients(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = built(arguments)
    batch = doubled(trainer.data_collator.collator(ROWS))
    results = []
    for elements in (2**40, 1):
        monkeypatch.setattr("llm_mer.model.modeling_mer.CHUNK_ELEMENTS", elements)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        results.append(
            (loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        )
    (one, gradients), (other, again) = results
    torch.testing.assert_close(one, other)
    assert set(gradients) == set(again)
    for name, value in gradients.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-10)


def test_training_learns_the_distribution_that_evaluation_scores(arguments: Callable[..., list[str]]) -> None:
    """The loss on a batch is the negative log-probability that the predictor gives the truth, before and after steps."""
    trainer = built(arguments, tasks=["emotion"])
    trainer.model.float()
    collator = trainer.data_collator.collator
    predictor = Predictor(trainer.model, trainer.processor)
    dataset = collator.dataset

    def both() -> tuple[float, float]:
        trainer.model.eval()
        with torch.no_grad():
            loss = float(trainer.compute_loss(trainer.model, without_auxiliary_targets(collator(ROWS))))
        predictions = predictor.predict(dataset, [row["question"] for row in ROWS])
        nll = [
            -p.log_probabilities[
                dataset.questions[row["question"]].task.class_index(dataset.questions[row["question"]].truth)
            ]
            for p, row in zip(predictions, ROWS, strict=True)
        ]
        return loss, float(np.mean(nll))

    loss, scored = both()
    assert loss == pytest.approx(scored, rel=1e-5)
    optimiser = torch.optim.Adam([p for p in trainer.model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        trainer.compute_loss(trainer.model, collator(ROWS)).backward()
        optimiser.step()
    later, scored_later = both()
    assert later == pytest.approx(scored_later, rel=1e-5)
    assert later < 0.5 * loss


def test_a_run_trains_on_answers_saves_what_it_learnt_from_and_is_evaluated(
    arguments: Callable[..., list[str]], tmp_path: Any
) -> None:
    given = arguments(
        tasks=["emotion", "sentiment"],
        objective="answers",
        max_steps=3,
        eval_strategy="epoch",
        output_dir=str(tmp_path / "a"),
    )
    folder = finetune(given)
    manifest = json.loads((folder / "run_manifest.json").read_text(encoding="utf-8"))
    assert manifest["options"]["model"]["objective"] == "answers"
    assert manifest["options"]["model"]["number_objective"] == "crps"
    history = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    assert [line["loss_lm"] > 0 for line in history if "loss_lm" in line] == [True] * 3
    assert any(line.get("eval_loss_lm", 0) > 0 and "eval_sentiment_en_mae" in line for line in history)


def test_accumulated_micro_batches_train_as_one_batch_does(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """Of eight questions with labels and numbers, in one batch, and in batches of 4 whose tasks are mixed otherwise."""
    weights = []
    for batch, steps in ((8, 1), (4, 2), (1, 8)):
        given = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1, "optim": "sgd"}
        given |= {"warmup_steps": 0, "learning_rate": "1e-1"}
        folder = tmp_path / str(batch)
        finetune(arguments(tasks=["emotion", "sentiment"], objective="answers", output=folder, **given))
        weights.append(adapter_weights(folder))
    moved = [value for name, value in weights[0].items() if "lora_B" in name]  # from zero
    assert min(float(value.abs().max()) for value in moved) > 1e-4
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"packing_length": 64}, "packing_length"),
        ({"backbone": "none", "text_source": "features"}, "backbone: none"),
        ({"objective": "tokens", "number_objective": "absolute_error"}, "number_objective"),
    ],
)
def test_options_that_do_not_go_with_answers_are_refused(
    arguments: Callable[..., list[str]], changes: dict[str, Any], said: str
) -> None:
    given = {"objective": "answers", **changes}
    with pytest.raises(UserError, match=said):
        build_trainer(parse_arguments(arguments(**given)))
