"""A read-out through training, checkpoint, inference and evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import adapter_weights, training_options
from double_precision import build_double_trainer, doubled
from torch import Tensor

from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.reading import read_utterances
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.metrics import compute_metrics
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.read_out import read_out_of
from llm_mer.training.answer_objectives import AnswerTargets
from llm_mer.training.loss_weighting import StepTargets
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

TASKS = ["emotion", "sentiment"]
ROWS = [{"question": index} for index in range(8)]


def expected_outputs(trainer: Any) -> np.ndarray:
    """``W h + b`` in NumPy, ``h`` of a pass over each prompt alone, without its answer."""
    head: Any = read_out_of(trainer.model)
    weight, bias = (p.detach().numpy() for p in (head.linear.weight, head.linear.bias))
    collator = trainer.data_collator.collator
    found = []
    for row in ROWS:
        question = collator.dataset.questions[row["question"]]
        batch = doubled(collator.batch([question], with_answer=False).model_inputs())
        with torch.no_grad():
            hidden = trainer.model(**batch).last_hidden_state[0, -1].numpy()
        found.append(weight @ hidden + bias)
    return np.stack(found)


def expected_losses(trainer: Any, outputs: np.ndarray) -> np.ndarray:
    """Cross entropy of labels, and the distance of scores from -3 to 3 in units of 3."""
    collator = trainer.data_collator.collator
    losses = []
    for row, own in zip(ROWS, outputs, strict=True):
        question = collator.dataset.questions[row["question"]]
        if question.task.name == "emotion":
            logits = own[:-1]
            losses.append(np.log(np.exp(logits).sum()) - logits[question.task.class_index(question.truth)])
        else:
            losses.append(abs(own[-1] - float(question.truth) / 3))
    return np.array(losses)


@pytest.mark.parametrize(
    "changes",
    [{}, {"packing_length": 200}, {"objective": "answers"}, {"gradient_checkpointing": "true"}],
    ids=["padded", "packed", "answers", "checkpointed"],
)
def test_what_is_trained_equals_a_pass_over_each_prompt_alone_in_float64(
    arguments: Callable[..., list[str]], changes: dict[str, Any]
) -> None:
    trainer = build_double_trainer(arguments(tasks=TASKS, read_out="true", **changes))
    expected = expected_outputs(trainer)
    batch = doubled(trainer.data_collator(ROWS))
    batch.pop("class_targets"), batch.pop("score_targets")
    asked = {name: value for name, value in batch.items() if name not in ("read_out_tasks", "read_out_targets")}
    if "answer_nodes" in asked:
        unread = ("labels", *AnswerTargets.NAMES)
        asked = {name: value for name, value in asked.items() if name not in unread}
    trainer.model.train("gradient_checkpointing" in changes)
    found = trainer.model(**asked, use_cache=False).read_out.detach().numpy()
    # A packed batch has its samples in another order: their outputs are told apart by their values.
    key = np.argsort(found[:, 0])
    np.testing.assert_allclose(found[key], expected[np.argsort(expected[:, 0])], rtol=1e-7, atol=1e-9)
    trainer.loss_weights = {"lm": 0.0, "read_out": 1.0}
    losses = expected_losses(trainer, expected)
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == pytest.approx(losses.mean(), rel=1e-6)


def test_parts_of_a_step_add_up_to_the_mean_over_its_questions(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(tasks=TASKS, read_out="true")))
    trainer.model.train()
    sizes, generator = read_out_of(trainer.model).sizes, torch.Generator().manual_seed(0)  # type: ignore[union-attr]
    outputs = torch.randn(8, sum(sizes.values()), generator=generator)
    tasks, wanted = torch.tensor([0, 1] * 4), torch.tensor([1.0, 0.2] * 4)

    def share(rows: slice, averaged: bool) -> Tensor:
        count = len(outputs[rows])
        whole = StepTargets((0, 0), (0, 0), (count, 8))
        asked = (tasks[rows], wanted[rows], None)
        found: Tensor = trainer._read_out_share(outputs[rows], asked, whole, averaged)
        return found

    trainer.current_gradient_accumulation_steps = 2
    together = share(slice(0, 8), False)
    torch.testing.assert_close(share(slice(0, 3), False) + share(slice(3, 8), False), together)
    torch.testing.assert_close((share(slice(0, 3), True) + share(slice(3, 8), True)) / 2, together)


@pytest.fixture(scope="module")
def read(backbones: dict[str, Path], store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read_out") / "run"
    finetune(
        training_options(
            store,
            backbones["llama"],
            folder,
            tasks=TASKS,
            read_out="true",
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate="1e-2",
        )
    )
    return folder


def test_a_checkpoint_reads_out_elsewhere_what_it_learnt(read: Path, store: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(read, tmp_path / "elsewhere"))
    assert any("read_out" in name for name in adapter_weights(elsewhere))
    assert json.loads((elsewhere / "llm_mer.json").read_text())["model"]["read_out"] == {"emotion": 6, "sentiment": 1}
    evaluation, by_condition = evaluate(
        EvaluateConfig(checkpoint=str(elsewhere), data=[str(store)], answer="all", resamples=20), progress=False
    )
    task = MerPipeline.from_pretrained(elsewhere).named_tasks(["emotion"])[0]
    row, scored = evaluation.find("read-out", "emotion"), evaluation.find("as is", "emotion")
    assert row is not None
    assert scored is not None
    assert (row.n, row.unparseable_rate, row.baseline) == (scored.n, 0.0, scored.baseline)
    assert row.metrics["accuracy"] > row.baseline["accuracy"] + 0.15
    answers = [p for p in by_condition["read-out"] if p.task == "emotion"]
    again = compute_metrics(task, [p.truth for p in answers], [p.value for p in answers])
    assert again["accuracy"] == row.metrics["accuracy"]
    for prediction in by_condition["read-out"]:
        if prediction.task == "emotion":
            assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        else:
            assert -3 <= float(prediction.value) <= 3
    sentiment = evaluation.find("read-out", "sentiment")
    assert sentiment is not None
    assert sentiment.metrics["corr"] > 0.5


def test_inference_reads_out_the_numbers_of_training(read: Path, store: Path) -> None:
    utterances = read_utterances(str(store))[0]["test"]
    rows = [utterances[i] for i in range(4)]
    chosen = MerPipeline.from_pretrained(read, answer="read_out")
    beside = MerPipeline.from_pretrained(read, batch_size=1)
    for one, other in zip(chosen(rows), beside(rows), strict=True):
        assert one.value == (pytest.approx(other.read_out, abs=1e-4) if one.task == "sentiment" else other.read_out)
        assert other.value is not None
        assert one.mean is None


def test_a_merged_checkpoint_reads_out_the_same(read: Path, store: Path, tmp_path: Path) -> None:
    merged = merge_checkpoint(read, tmp_path / "merged")
    rows = [read_utterances(str(store))[0]["test"][i] for i in range(2)]
    before, after = (MerPipeline.from_pretrained(folder)(rows) for folder in (read, merged))
    for one, other in zip(before, after, strict=True):
        assert other.read_out == (pytest.approx(one.read_out, abs=1e-3) if one.task == "sentiment" else one.read_out)


def test_reading_out_is_refused_where_there_is_none(store: Path, no_backbone: None) -> None:
    with pytest.raises(UserError, match="read_out: reads the language model's hidden state, and backbone: none"):
        build_trainer(parse_arguments(training_options(store, "none", "x", read_out="true")))


def test_a_checkpoint_without_a_read_out_says_so(trained: Path, store: Path) -> None:
    with pytest.raises(UserError, match="has no read-out; train with read_out: true"):
        MerPipeline.from_pretrained(trained, answer="read_out")
    with pytest.raises(UserError, match=r"--answer all: .* has its scored answers alone"):
        evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(store)], answer="all"), progress=False)
    with pytest.raises(UserError, match="answer is 'guess'; choose one of scored, read_out, pooled"):
        MerPipeline.from_pretrained(trained, answer="guess")
