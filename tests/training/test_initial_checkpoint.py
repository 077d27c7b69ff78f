"""A checkpoint to begin with is of the same adapter, built the same way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.errors import UserError
from llm_mer.training.initial_checkpoint import check_initial_adapter
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

START: dict[str, Any] = {"tasks": ["emotion", "sentiment"], "auxiliary_head": "true", "lora_r": None, "lora_dropout": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "was trained with num_heads 2, not 4"),  # weights of the same shapes
        ({"hidden_size": 32}, "was trained with hidden_size 16, not 32"),
        ({"use_text": "false"}, "was trained with use_text True, not False"),
        ({"adapter": "gated_projector", "num_heads": None}, "was trained with adapter 'egmf', not 'gated_projector'"),
        ({"backbone": "none"}, "was trained beside a language model; this run has one alone"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("no_backbone")
def test_another_adapter_is_refused_before_a_backbone_is_loaded(
    changes: dict[str, Any], message: str, trained: Path, arguments: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=f"init_checkpoint: .*{message}"):
        build_trainer(parse_arguments(arguments(init_checkpoint=trained, **{**START, **changes})))


@pytest.mark.usefixtures("no_backbone")
def test_a_head_for_other_tasks_is_told_before_its_weights_are_read(
    trained: Path, arguments: Callable[..., list[str]]
) -> None:
    message = "has an adapter's head for 6 labels and a score, and the tasks of this run ask for a score; name tasks"
    with pytest.raises(UserError, match=f"init_checkpoint: .*{message}"):
        build_trainer(parse_arguments(arguments(init_checkpoint=trained, **{**START, "tasks": ["sentiment"]})))


def test_what_is_of_training_alone_may_differ_and_an_adapters_own_option_is_told(
    trained: Path, arguments: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    initial = CheckpointDescription.load(trained)
    with caplog.at_level(logging.WARNING):
        check_initial_adapter(initial, parse_arguments(arguments(**START, dropout=0.3, modality_dropout=0.0)), "first")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_initial_adapter(initial, parse_arguments(arguments(**START, use_expert_local="false")), "first")
    assert "init_checkpoint: first was trained with use_expert_local True; here it is False" in caplog.text
