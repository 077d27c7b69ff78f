"""A score is trained on the scale of its range: in what numbers it is written changes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_mer.adapters.base import FusionTargets
from tests.helpers.builders import CASES, Case, build, make_inputs, weighted_loss

SCORED = [case for case in CASES if case.task == "both"]
PLACES = torch.tensor([torch.nan, 0.75, 0.0, 0.25])  # of the range
CLASSES = torch.tensor([2, -100, 0, 3])


def gradients(case: Case, low: float, high: float) -> dict[str, Tensor]:
    """Of an adapter whose scores lie at the same places of another range."""
    adapter: Any = build(case, double=True, score_range=(low, high))
    inputs = make_inputs(case, torch.float64)
    inputs = dataclasses.replace(inputs, targets=FusionTargets(CLASSES, low + (high - low) * PLACES.double()))
    weighted_loss(adapter, adapter(inputs)).backward()
    return {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", SCORED, ids=str)
def test_the_gradient_does_not_depend_on_the_numbers_a_score_is_written_in(case: Case) -> None:
    unit, percent, shifted = (gradients(case, *bounds) for bounds in ((0.0, 1.0), (0.0, 100.0), (-7.0, -3.0)))
    assert any(grad.any() for grad in unit.values())
    for name, grad in unit.items():
        torch.testing.assert_close(percent[name], grad, atol=1e-9, rtol=1e-5)
        torch.testing.assert_close(shifted[name], grad, atol=1e-9, rtol=1e-5)


def test_an_emotion_beside_percents_is_learnt_as_well_as_beside_shares() -> None:
    case = Case("gated_projector", "both")
    found = {}
    for high in (1.0, 100.0):
        adapter: Any = build(case, train=True, score_range=(0.0, high))
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        inputs = make_inputs(case)
        inputs = dataclasses.replace(inputs, targets=FusionTargets(CLASSES, high * PLACES))
        for _ in range(60):
            optimizer.zero_grad()
            output = adapter(inputs)
            weighted_loss(adapter, output).backward()
            optimizer.step()
        found[high] = output
    known = CLASSES != -100
    assert (found[100.0].logits.argmax(dim=1)[known] == CLASSES[known]).all()
    assert found[100.0].aux_losses["ce"].item() == pytest.approx(found[1.0].aux_losses["ce"].item(), rel=0.02)
    torch.testing.assert_close(found[100.0].scores / 100, found[1.0].scores, atol=0.02, rtol=0.0)
