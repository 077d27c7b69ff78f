"""The gate in front of the language model: closed at the start, opened by the loss, rows dropped whole."""

import dataclasses

import numpy as np
import pytest
import torch
from builders import BATCH, CASES, Case, build, make_inputs, rows

from llm_mer.adapters.base import FusionAdapter
from llm_mer.adapters.pseudo_token_gate import PseudoTokenGate, drop_rows

every_adapter = pytest.mark.parametrize("case", [c for c in CASES if c.task == "both"], ids=str)
K, H, NORM = 3, 64, 5.0


def gate_of(adapter: FusionAdapter) -> PseudoTokenGate:
    assert adapter.token_gate is not None
    return adapter.token_gate


def test_the_equation_against_numpy() -> None:
    gate = PseudoTokenGate(K, H, NORM).double()
    with torch.no_grad():
        gate.gate.fill_(0.7)
    tokens = torch.randn(5, K, H, dtype=torch.float64)
    expected = gate.base.detach().numpy()[None] + np.tanh(0.7) * tokens.numpy()
    np.testing.assert_allclose(gate(tokens).detach().numpy(), expected, rtol=1e-12)


def test_constant_tokens_start_at_the_norm_of_the_backbones_embeddings() -> None:
    torch.manual_seed(0)
    assert float(PseudoTokenGate(200, 512, NORM).base.detach().norm(dim=-1).mean()) == pytest.approx(NORM, rel=0.02)


def test_a_closed_gate_has_a_gradient_and_what_stands_behind_it_has_none() -> None:
    gate = PseudoTokenGate(K, H, NORM)
    tokens = torch.randn(4, K, H, requires_grad=True)
    upstream = torch.randn(4, K, H)
    gate(tokens).backward(upstream)
    assert gate.gate.grad is not None
    assert tokens.grad is not None
    assert float(gate.gate.grad) == pytest.approx(float((upstream * tokens).sum().detach()), rel=1e-4)  # tanh'(0) = 1
    assert float(gate.gate.grad) != 0.0
    assert float(tokens.grad.abs().max()) == 0.0


@every_adapter
def test_at_the_start_no_pseudo_token_depends_on_the_utterance(case: Case) -> None:
    adapter, inputs = build(case, pseudo_token_gate=True), make_inputs(case)
    tokens = adapter(inputs).pseudo_tokens
    assert torch.equal(tokens, gate_of(adapter).base.expand_as(tokens))
    with torch.no_grad():
        gate_of(adapter).gate.fill_(0.5)
    opened = adapter(inputs).pseudo_tokens
    assert not torch.allclose(opened[0], opened[1], atol=1e-3)


@every_adapter
def test_one_step_opens_the_gate_and_the_next_reaches_the_features(case: Case) -> None:
    adapter, inputs = build(case, train=True, pseudo_token_gate=True), make_inputs(case)
    target = torch.randn_like(adapter(inputs).pseudo_tokens)
    optimizer = torch.optim.SGD([gate_of(adapter).gate], lr=1e-2)
    assert adapter.pseudo_tokens is not None
    for first in (True, False):
        adapter.zero_grad()
        (adapter(inputs).pseudo_tokens * target).sum().backward()
        gradient = adapter.pseudo_tokens.linear.weight.grad
        assert gradient is not None
        assert (float(gradient.abs().max()) == 0.0) is first
        optimizer.step()
    assert float(gate_of(adapter).gate.detach()) != 0.0


@every_adapter
def test_the_switches_are_off_by_default_and_change_nothing(case: Case) -> None:
    plain, inputs = build(case), make_inputs(case)
    assert plain.token_gate is None
    assert not any("token_gate" in name for name in plain.state_dict())
    config = dataclasses.replace(plain.config, pseudo_token_gate=False, pseudo_token_dropout=0.0)
    torch.manual_seed(3)
    again = type(plain)(config)
    again.load_state_dict(plain.state_dict())
    again.eval()
    assert torch.equal(again(inputs).pseudo_tokens, plain(inputs).pseudo_tokens)


@pytest.mark.parametrize("gated", [False, True])
def test_dropout_takes_all_pseudo_tokens_of_a_row_or_none(gated: bool) -> None:
    case = next(c for c in CASES if c.task == "both")
    adapter = build(case, train=True, pseudo_token_dropout=0.5, pseudo_token_gate=gated, dropout=0.0)
    if gated:
        with torch.no_grad():
            gate_of(adapter).gate.fill_(0.5)
    inputs = make_inputs(case)
    absent = gate_of(adapter).base.detach() if gated else torch.zeros(())
    adapter.config.pseudo_token_dropout = 0.0
    whole = adapter(inputs).pseudo_tokens
    adapter.config.pseudo_token_dropout = 0.5
    seen = set()
    for _ in range(40):
        tokens = adapter(inputs).pseudo_tokens
        for row in range(BATCH):
            dropped = torch.equal(tokens[row], absent.expand_as(tokens[row]))
            assert dropped or torch.allclose(tokens[row], whole[row], atol=1e-6)  # not scaled up either
            seen.add(dropped)
    assert seen == {True, False}
    adapter.eval()
    assert torch.allclose(adapter(inputs).pseudo_tokens, adapter(rows(inputs, list(range(BATCH)))).pseudo_tokens)
    assert not torch.equal(adapter(inputs).pseudo_tokens[0], absent.expand_as(whole[0]))


def test_the_rate_is_the_share_of_dropped_rows() -> None:
    torch.manual_seed(0)
    tokens = torch.ones(20_000, 2, 3)
    kept = drop_rows(tokens, torch.zeros_like(tokens), 0.3)
    assert float(kept.mean()) == pytest.approx(0.7, abs=0.02)
    assert set(kept.flatten(1).sum(dim=1).tolist()) == {0.0, 6.0}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_withheld_tokens_say_nothing_but_the_head_still_learns(gated: bool, train: bool) -> None:
    case = next(c for c in CASES if c.task == "both")
    adapter = build(case, train=train, pseudo_token_gate=gated)
    if gated:
        with torch.no_grad():
            gate_of(adapter).gate.fill_(0.5)
    inputs = make_inputs(case, targets=True)
    adapter.withhold_tokens = True
    output = adapter(inputs)
    expected = gate_of(adapter).base.expand_as(output.pseudo_tokens) if gated else torch.zeros_like(output.pseudo_tokens)
    assert torch.equal(output.pseudo_tokens, expected)
    (output.pseudo_tokens.sum() + sum(output.aux_losses.values())).backward()
    assert all(parameter.grad is not None for name, parameter in adapter.named_parameters() if "token" in name)
    heads = [p for n, p in adapter.named_parameters() if n.startswith("head.classifier")]
    assert heads
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in heads)


def test_a_small_scale_hides_little_from_a_backbone_that_normalises() -> None:
    """Why the gate is no scale: RMSNorm gives the direction of a token back at its full length."""
    torch.manual_seed(0)
    token = torch.randn(576, dtype=torch.float64) * 0.1  # the size of a SmolLM2 embedding's entries
    norm = torch.nn.RMSNorm(576, eps=1e-5, dtype=torch.float64)
    full, tenth = norm(token), norm(0.1 * token)
    assert float(torch.nn.functional.cosine_similarity(full, tenth, dim=0)) == pytest.approx(1.0)
    assert float(tenth.norm() / full.norm()) > 0.9


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_of_dropout_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"pseudo_token_dropout is .*; it must lie in \[0, 1\)"):
        build(CASES[0], pseudo_token_dropout=rate)
