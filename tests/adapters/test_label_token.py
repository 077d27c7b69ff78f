"""A pseudo token of label words says what the adapter's own classifier finds, in every adapter that has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import BACKBONE_SIZE, CLASSES, Case, build, make_inputs, rows

from llm_mer.adapters import adapter_names
from llm_mer.adapters.label_token import LabelToken

LABELS = {"token_expansion": "labels"}
CASES = [Case(name, "both") for name in adapter_names()]
every_adapter = pytest.mark.parametrize("case", CASES, ids=str)


def test_the_token_equals_the_mixture_in_numpy() -> None:
    token = LabelToken(CLASSES, BACKBONE_SIZE, 2.5).double()
    logits = torch.randn(7, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    z = logits.numpy()
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = shares @ token.words.detach().numpy()
    assert np.allclose(token(logits).detach().numpy()[:, 0], expected, atol=1e-14)


def test_a_certain_classifier_says_the_labels_own_word() -> None:
    token, words = LabelToken(CLASSES, BACKBONE_SIZE, 1.0), torch.randn(CLASSES, BACKBONE_SIZE)
    token.initialise(words)
    said = token(torch.eye(CLASSES) * 200)
    assert torch.equal(said[:, 0], words)


@every_adapter
def test_the_last_token_is_of_label_words_and_the_others_are_projected(case: Case) -> None:
    adapter, inputs = build(case, **LABELS), make_inputs(case)
    assert adapter.label_token is not None
    output = adapter(inputs)
    assert output.logits is not None
    assert output.pseudo_tokens.shape[1] == 3
    torch.testing.assert_close(output.pseudo_tokens[:, 2:], adapter.label_token(output.logits))
    alone = build(case, **LABELS, num_pseudo_tokens=1)
    assert alone.pseudo_tokens is None
    assert alone(inputs).pseudo_tokens.shape == (4, 1, BACKBONE_SIZE)


@every_adapter
def test_a_sample_does_not_depend_on_its_batch_mates(case: Case) -> None:
    adapter, inputs = build(case, **LABELS), make_inputs(case)
    together = adapter(inputs).pseudo_tokens
    for index in (0, 3):
        torch.testing.assert_close(adapter(rows(inputs, [index])).pseudo_tokens, together[[index]], atol=1e-5, rtol=0)


@every_adapter
def test_the_language_models_gradient_reaches_words_and_classifier(case: Case) -> None:
    adapter, inputs = build(case, **LABELS, train=True), make_inputs(case)
    weights = torch.randn(BACKBONE_SIZE, generator=torch.Generator().manual_seed(2))
    (adapter(inputs).pseudo_tokens[:, 2] * weights).sum().backward()
    assert adapter.label_token is not None
    assert adapter.label_token.words.grad is not None
    assert bool(adapter.label_token.words.grad.abs().sum(dim=1).gt(0).all())
    classifiers = [p for name, p in adapter.named_parameters() if "classifier" in name and p.grad is not None]
    assert any(bool(p.grad.abs().gt(0).any()) for p in classifiers if p.grad is not None)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (Case("egmf", "regression"), {}, "token_expansion labels needs a classification task"),
        (Case("egmf", "both"), {"auxiliary_head": False}, "set auxiliary_head: true"),
    ],
    ids=["no classes", "no head"],
)
def test_without_a_classifier_there_is_nothing_to_say(case: Case, options: dict[str, bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(case, **LABELS, **options)


def test_an_adapter_with_a_classifier_of_its_own_needs_no_head() -> None:
    adapter = build(Case("lsgmer", "both"), **LABELS, auxiliary_head=False)
    assert adapter(make_inputs(Case("lsgmer", "both"))).pseudo_tokens.shape == (4, 3, BACKBONE_SIZE)


def test_a_trained_checkpoint_starts_at_the_label_words_and_comes_back(
    store: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    from conftest import training_options

    from llm_mer import MerPipeline, load_dataset
    from llm_mer.cli.train import finetune
    from llm_mer.model.modeling_mer import fusion_adapter_of
    from llm_mer.training.model_builder import label_vectors

    options = {"token_expansion": "labels", "auxiliary_head": "true", "adapter_learning_rate": "0", "max_steps": 1}
    finetune(training_options(store, backbones["llama"], tmp_path / "run", **options))
    pipeline = MerPipeline.from_pretrained(tmp_path / "run")
    predictor = pipeline.predictor
    task = predictor.processor.class_task
    assert task is not None
    token = fusion_adapter_of(predictor.model).label_token
    assert token is not None
    expected = label_vectors(predictor.model, predictor.processor, task)
    torch.testing.assert_close(token.words.detach(), expected, atol=1e-6, rtol=0)
    assert len(pipeline(load_dataset(str(store))["test"][:2])) == 2
