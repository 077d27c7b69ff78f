"""The read-out's places, outputs and losses, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llm_mer.model.read_out import (
    ReadOut,
    answer_positions,
    columns_of,
    read_out_losses,
    read_out_score,
    read_out_sizes,
    read_out_target,
)
from llm_mer.prompting.tasks import Task, get_task

PERCENT = Task.from_dict("percent", {"kind": "regression", "range": [0, 100], "decimals": 0})
TASKS = [PERCENT, get_task("polarity"), get_task("sentiment")]
SIZES = read_out_sizes(TASKS)


def test_each_task_has_its_own_outputs() -> None:
    labels = TASKS[1].num_classes
    assert {"percent": 1, "polarity": labels, "sentiment": 1} == SIZES
    assert [columns_of(SIZES, task.name) for task in TASKS] == [
        slice(0, 1),
        slice(1, 1 + labels),
        slice(1 + labels, 2 + labels),
    ]


def test_a_number_is_learnt_by_its_place_in_its_range_and_never_read_outside_it() -> None:
    assert [read_out_target(PERCENT, score) for score in (0, 50, 75, 100)] == [-1.0, 0.0, 0.5, 1.0]
    assert read_out_target(TASKS[2], 1.5) == 0.5
    assert [read_out_score(PERCENT, output) for output in (-7.0, -1.0, 0.5, 1.5)] == [0.0, 0.0, 75.0, 100.0]


def test_losses_equal_their_definitions_in_float64() -> None:
    random = np.random.default_rng(0)
    outputs = random.normal(size=(5, sum(SIZES.values())))
    tasks, targets = np.array([1, 0, 2, 1, 0]), np.array([1.0, -0.3, 0.9, 0.0, 1.0])
    expected = []
    for row, task in enumerate(tasks):
        own = outputs[row, columns_of(SIZES, TASKS[task].name)]
        if task == 1:
            expected.append(np.log(np.exp(own).sum()) - own[int(targets[row])])
        else:
            expected.append(abs(own[0] - targets[row]))
    found = read_out_losses(torch.from_numpy(outputs), SIZES, torch.from_numpy(tasks), torch.from_numpy(targets))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_a_task_learns_from_its_own_samples_alone() -> None:
    outputs = torch.randn(3, sum(SIZES.values()), requires_grad=True)
    read_out_losses(outputs, SIZES, torch.tensor([0, 1, 0]), torch.tensor([0.5, 1.0, -0.5])).sum().backward()
    assert outputs.grad is not None
    own = columns_of(SIZES, "polarity")
    assert outputs.grad[1, own].all()
    assert not outputs.grad[[0, 2], own].any()
    assert not outputs.grad[1, 0].any()
    assert not outputs.grad[:, -1].any()


def test_the_first_token_of_each_answer_is_found_in_padded_and_in_packed_rows() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100, 7, 8, 9], [-100, 3, -100, -100, -100, -100, -100, -100, -100]])
    assert answer_positions(labels).nonzero().tolist() == [[0, 1], [0, 5], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32_whatever_the_backbone_is_in(dtype: torch.dtype) -> None:
    read_out = ReadOut(6, SIZES)
    hidden = torch.randn(4, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = read_out(hidden)
    weight, bias = (p.detach().double().numpy() for p in (read_out.linear.weight, read_out.linear.bias))
    np.testing.assert_allclose(found.detach().numpy(), hidden.double().numpy() @ weight.T + bias, rtol=1e-5, atol=1e-6)
