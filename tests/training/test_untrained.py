"""A run that trains nothing, or next to it, says so."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from llm_mer.errors import UserError
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer
from llm_mer.training.untrained import warm_up_warning, weights_warning


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 1), (1, 10), (12, 12), (12, 5000), (13, 12), (12, 0), (1, 0), (100, 10)])
def test_a_warm_up_that_does_not_end_is_told_with_the_rate_that_is_reached(steps: int, warm_up: int) -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warm_up, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    told = warm_up_warning(steps, warm_up)
    assert (told is None) == (max(rates) == 1.0)
    if told is not None:
        reached = f"only {max(rates):.1%} of learning_rate" if max(rates) else "its learning rate is 0: nothing is trained"
        assert reached in told


def test_losses_that_weigh_nothing_are_told_apart_from_those_that_are_trained() -> None:
    weights = {"lm": 0.0, "ce": 1.0, "l1": 1.0}
    assert "(lm) weighs more than 0: nothing is trained" in str(weights_warning({"loss_lm": 3.0}, weights))
    assert weights_warning({"loss_lm": 3.0, "loss_ce": 1.0}, weights) is None
    assert weights_warning({}, weights) is None


def test_a_run_of_one_step_in_its_warm_up_and_without_a_weight_says_both(
    arguments: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"max_steps": 1, "limit_train": 8, "loss_weights": ["lm=0"]}
    with caplog.at_level(logging.WARNING):
        build_trainer(parse_arguments(arguments(**changes))).train()
    assert "the run has 1 steps, all of them within the 1 of its warm-up: its learning rate is 0" in caplog.text
    assert "none of the losses computed here (lm) weighs more than 0" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_trainer(parse_arguments(arguments(max_steps=1, limit_train=8, warmup_steps=0))).train()
    assert "nothing is trained" not in caplog.text


def test_evaluations_delayed_beyond_the_end_are_refused_where_a_checkpoint_is_chosen_by_them(
    arguments: Callable[..., list[str]],
) -> None:
    changes = {"max_steps": 1, "limit_train": 8, "limit_eval": 4, "eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2}
    changes |= {"load_best_model_at_end": "true", "save_strategy": "steps", "save_steps": 1, "backbone": "none"}
    with pytest.raises(UserError, match="eval_delay: 2, but the run has 1 steps: nothing would be evaluated"):
        build_trainer(parse_arguments(arguments(**changes))).train()
