"""No step of training reads a number back from its device, where the host would wait for all the work queued before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import CASES, Case, build, make_inputs, weighted_loss
from test_modeling_mer import features, prompts, wrap
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llm_mer.adapters import base
from llm_mer.adapters.layers import class_loss, score_loss
from llm_mer.model import modeling_mer
from llm_mer.model.outputs import find_label_positions

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique",
    "_unique2",
    "masked_scatter_backward",
)


class ReadBack(AssertionError):
    """An operation whose result the host must know."""


class NoHostWaits(TorchDispatchMode):
    """Raises where an operation's result, or its shape, depends on values that lie on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            raise ReadBack(name)
        by_index = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if by_index and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise ReadBack(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks as an accelerator makes them."""

    def asserted(holds: Tensor, message: str) -> bool:
        torch._assert_async(holds, message)
        return True

    monkeypatch.setattr(base, "check_on_device", asserted)
    monkeypatch.setattr(modeling_mer, "check_on_device", asserted)


def answered() -> dict[str, Tensor]:
    """A batch with answers of two and one tokens."""
    batch = prompts(left=False)
    labels = torch.full(batch["input_ids"].shape, -100)
    labels[0, -2:], labels[1, 7] = 5, 6
    return {**features(2), **batch, "labels": labels}


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.tensor([True, False])], ids=["item", "mask"])
def test_the_watch_sees_reading_back(values: Tensor) -> None:
    with NoHostWaits(), pytest.raises(ReadBack):
        float(values) if values.ndim == 0 else torch.ones(2)[values]
    source = torch.ones(2, requires_grad=True)
    with NoHostWaits(), pytest.raises(ReadBack, match="masked_s"):
        torch.zeros(4).masked_scatter(torch.tensor([True, False, True, False]), source).sum().backward()


@pytest.mark.usefixtures("on_a_device")
def test_forward_and_backward_of_a_training_step_read_nothing_back(backbones: dict[str, Path]) -> None:
    _, model = wrap(backbones["llama"], audio_visual_encoder="transformer")
    model.train()
    batch = answered()
    batch["label_positions"] = find_label_positions(batch["labels"])
    batch["attention_mask"] = torch.ones(2, 1, 11, 11, dtype=torch.bool).tril()  # transformers reads a padding mask itself
    with NoHostWaits():
        output = model(**batch, use_cache=False)
        output.loss.backward()
    assert output.loss.isfinite()


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("case", [c for c in CASES if c.task == "both"], ids=str)
def test_an_adapter_reads_nothing_back_in_training(case: Case) -> None:
    if case.adapter == "egmf":  # its LSTMs over sequences of several lengths need the lengths on the host, by torch's design
        with NoHostWaits(), pytest.raises(ReadBack):
            build(case, train=True)(make_inputs(case, targets=True))
        case = dataclasses.replace(case, options={**case.options, "audio_visual_encoder": "transformer"})
    adapter = build(case, train=True, modality_dropout=0.2, feature_noise=0.1)
    inputs = make_inputs(case, targets=True)
    with NoHostWaits():
        weighted_loss(adapter, adapter(inputs)).backward()


def test_injection_by_index_is_masked_scatter_to_the_bit(backbones: dict[str, Path]) -> None:
    _, model = wrap(backbones["llama"])
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, start in enumerate((0, 2, 6)):
        mask[row, start : start + 3] = True
    found = []
    for inject in (
        model.model.inject,
        lambda embeds, mask, tokens: embeds.masked_scatter(mask.unsqueeze(-1), tokens.to(embeds.dtype)),
    ):
        generator = torch.Generator().manual_seed(0)
        embeds = torch.randn(3, 9, 8, generator=generator, requires_grad=True)
        tokens = torch.randn(3, 3, 8, generator=generator, requires_grad=True)
        output = inject(embeds, mask, tokens)
        (output * torch.randn(output.shape, generator=generator)).sum().backward()
        found.append((output, embeds.grad, tokens.grad))
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)


def test_places_from_the_collator_give_the_loss_and_gradient_of_boolean_indexing_to_the_bit(
    backbones: dict[str, Path],
) -> None:
    batch = answered()
    positions = find_label_positions(batch["labels"])
    hidden = torch.randn(2, 11, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    behind = batch["labels"][:, 1:] != -100
    old = hidden[:, :-1][behind]
    new = hidden.flatten(0, 1)[positions - 1]
    assert torch.equal(old, new)
    assert torch.equal(batch["labels"][:, 1:][behind], batch["labels"].flatten()[positions])
    gradients = [torch.autograd.grad(part.pow(2).sum(), hidden)[0] for part in (old, new)]
    assert torch.equal(*gradients)
    _, model = wrap(backbones["llama"])
    assert torch.equal(model(**batch).loss, model(**batch, label_positions=positions).loss)


@pytest.mark.parametrize("known", [[3, -100, 0, 1], [-100] * 4], ids=["some", "none"])
def test_class_and_score_losses_are_means_over_the_known_to_the_bit(known: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor(known)
    logits = torch.randn(4, 5, generator=generator, requires_grad=True)
    scores = torch.where(classes == -100, torch.nan, torch.randn(4, generator=generator))
    predicted = torch.randn(4, generator=generator, requires_grad=True)
    some = bool((classes != -100).any())
    expected = F.cross_entropy(logits, classes) if some else logits.sum() * 0.0
    assert torch.equal(class_loss(logits, classes), expected)
    assert torch.equal(torch.autograd.grad(class_loss(logits, classes), logits)[0], torch.autograd.grad(expected, logits)[0])
    loss = score_loss(predicted, scores)
    gradient = torch.autograd.grad(loss, predicted)[0]
    assert gradient.isfinite().all()
    if some:
        inside = ~scores.isnan()
        assert torch.equal(loss, (predicted - scores)[inside].abs().sum() / inside.sum())
    else:
        assert float(loss.detach()) == 0.0
        assert not gradient.any()
