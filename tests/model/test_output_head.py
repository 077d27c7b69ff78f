"""Answer tokens' log-probabilities are those of the head in float32, in any type of the layers, and in bounded memory."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import MerForConditionalGeneration, conditional_generation_of
from llm_mer.model.output_head import next_token_log_probs, reads_in_float32
from llm_mer.model.outputs import NextTokens

BATCH, PLACES, WIDTH, VOCABULARY = 3, 4, 64, 501
NODES, TOKENS = torch.tensor([0, 0, 1, 3, 2]), torch.tensor([0, 500, 77, 250, 251])


def build(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, Tensor]:
    """A head and hidden states whose logits are as large as those of published models, about 20."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    with torch.no_grad():
        head.weight.normal_(std=1.0)
    head.requires_grad_(False)
    return head.to(dtype), (2.5 * torch.randn(BATCH, PLACES, WIDTH)).to(dtype)


def in_float64(head: nn.Linear, hidden: Tensor, nodes: Tensor = NODES, tokens: Tensor = TOKENS) -> np.ndarray:
    """The same by NumPy in float64."""
    weight, states = head.weight.double().numpy(), hidden.double().numpy()
    logits = states @ weight.T
    if head.bias is not None:
        logits += head.bias.double().numpy()
    top = logits.max(axis=-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return np.asarray(log_probs[:, nodes.numpy(), tokens.numpy()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_they_are_those_of_float64_whatever_type_head_and_states_have(dtype: torch.dtype, bias: bool) -> None:
    head, hidden = build(dtype, bias)
    found = next_token_log_probs(head, hidden, NODES, TOKENS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), in_float64(head, hidden), rtol=0, atol=2e-5)


def test_a_head_in_bfloat16_itself_is_far_from_them() -> None:
    head, hidden = build(torch.bfloat16)
    logits = head(hidden).float()
    rounded = (logits.log_softmax(dim=-1))[:, NODES, TOKENS].numpy()
    assert np.abs(rounded - in_float64(head, hidden)).max() > 0.02


def test_autocast_changes_nothing() -> None:
    head, hidden = build(torch.float32)
    exact = next_token_log_probs(head, hidden, NODES, TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = next_token_log_probs(head, hidden, NODES, TOKENS)
    assert torch.equal(found, exact)


def test_parts_of_the_vocabulary_change_nothing_but_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = build(torch.bfloat16)
    whole = next_token_log_probs(head, hidden, NODES, TOKENS)
    sizes: list[int] = []
    linear = torch.nn.functional.linear

    def seen(states: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(max(weight.numel(), states.shape[0] * states.shape[1] * weight.shape[0]))
        return linear(states, weight, *rest)

    monkeypatch.setattr("llm_mer.model.output_head.CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr("llm_mer.model.output_head.F.linear", seen)
    found = next_token_log_probs(head, hidden, NODES, TOKENS)
    assert len(sizes) > 30
    assert max(sizes) <= 1000
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


class Wrapped(nn.Linear):
    """A head that computes something of its own, as one that is quantised or adapted does."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * 0.5


def test_a_head_that_cannot_be_read_computes_its_logits_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = build(torch.float32)
    wrapped = Wrapped(WIDTH, VOCABULARY).requires_grad_(False)
    wrapped.load_state_dict(head.state_dict())
    assert reads_in_float32(head)
    assert not reads_in_float32(wrapped)
    halved = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
    halved.load_state_dict({name: value / 2 for name, value in head.state_dict().items()})
    for elements in (2**26, 1):
        monkeypatch.setattr("llm_mer.model.output_head.CHUNK_ELEMENTS", elements)
        found = next_token_log_probs(wrapped, hidden, NODES, TOKENS)
        np.testing.assert_allclose(found.numpy(), in_float64(halved, hidden), rtol=0, atol=2e-5)
    head.weight.ds_id = 0  # as DeepSpeed marks what ZeRO-3 shards
    assert not reads_in_float32(head)
    assert not reads_in_float32(nn.Linear(2, 2, device="meta"))


@pytest.fixture(scope="module")
def in_bfloat16(trained: Path) -> MerPipeline:
    return MerPipeline.from_pretrained(trained, dtype="bfloat16")


def test_a_model_in_bfloat16_scores_answers_by_its_hidden_states_and_a_head_in_float32(in_bfloat16: MerPipeline) -> None:
    core = conditional_generation_of(in_bfloat16.predictor.model)
    assert isinstance(core, MerForConditionalGeneration)
    assert core.lm_head.weight.dtype == torch.bfloat16
    head = nn.Linear(*reversed(core.lm_head.weight.shape), bias=False, dtype=torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        head.weight.copy_(core.lm_head.weight * 64)  # the tiny model's logits are small: make them those of a large one
        before, core.lm_head = core.lm_head, head
        seen: list[Tensor] = []
        hook = core.model.register_forward_hook(lambda _module, _given, output: seen.append(output.last_hidden_state))
        try:
            positions = torch.tensor([[2, 5], [3, 5]])
            asked = NextTokens(positions, torch.tensor([0, 1, 1]), torch.tensor([3, 9, 11]))
            output = core(input_ids=torch.arange(3, 15).view(2, 6), next_tokens=asked)
        finally:
            core.lm_head = before
            hook.remove()
    states = seen[0][torch.tensor([[0], [1]]), positions]
    assert states.dtype == torch.bfloat16
    expected = in_float64(head, states, asked.nodes, asked.tokens)
    assert np.ptp(states.double().numpy() @ head.weight.double().numpy().T) > 16
    np.testing.assert_allclose(output.answer_log_probs.numpy(), expected, rtol=0, atol=1e-4)


def test_a_head_that_rounds_its_logits_is_said_in_log_and_evaluation(
    trained: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = "so logits are rounded to bfloat16"
    with caplog.at_level(logging.WARNING, "llm_mer"):
        MerPipeline.from_pretrained(trained, dtype="bfloat16")
        assert told not in caplog.text
        monkeypatch.setattr("llm_mer.inference.predictor.reads_in_float32", lambda head: False)
        config = EvaluateConfig(str(trained), [str(store)], limit=2, resamples=10, dtype="bfloat16")
        found, _ = evaluate(config, progress=False)
    assert told in caplog.text
    assert any(told in warning for warning in found.warnings)
    caplog.clear()
    MerPipeline.from_pretrained(trained)
    assert "rounded" not in caplog.text
