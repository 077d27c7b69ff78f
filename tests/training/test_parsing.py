"""The command line of a training: flat names, one YAML file under it, no abbreviations, mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_mer.errors import UserError
from llm_mer.training.parsing import parse_arguments


def test_the_yaml_file_may_stand_before_between_or_after_the_options_that_override_it(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"seed": 99, "num_train_epochs": 4, "seeds": [3, 4]}))
    argv = arguments(num_train_epochs=None)
    for place in (0, 2, len(argv)):
        training = parse_arguments([*argv[:place], "--config", str(path), *argv[place:]]).training
        assert (training.seed, training.num_train_epochs, training.seeds) == (7, 4.0, [3, 4])


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["--seeds", "1111", "2222"], "seeds", [1111, 2222]),
        (["--tasks", "emotion", "sentiment"], "tasks", ["emotion", "sentiment"]),
        (["--loss_weights", "lm=1.0", "ce=0.5"], "loss_weights", ["lm=1.0", "ce=0.5"]),
        (["--bf16", "false"], "bf16", False),
        (["--learning-rate", "2e-4"], "learning_rate", 2e-4),
        (["--learning_rate=2e-4"], "learning_rate", 2e-4),
        (["--auxiliary_head"], "auxiliary_head", True),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
        (["--resume_from_checkpoint", "runs/a"], "resume_from_checkpoint", "runs/a"),
        (["--max_steps", "-1"], "max_steps", -1),
    ],
)
def test_values_come_to_the_types_of_their_options(given: list[str], name: str, value: Any) -> None:
    config = parse_arguments(["--data", "x", "--backbone", "none", *given])
    found = {**vars(config.adapter), **vars(config.data), **vars(config.model), **vars(config.training)}
    assert found[name] == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--hub_tok", "x"], r"unknown option --hub_tok"),
        (["--learning_rat", "1"], r"unknown option --learning_rat; did you mean --learning_rate\?$"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config: a.yaml and b.yaml; name one YAML file"),
        (["--config"], "--config: name a YAML file"),
        (["--bf16", "perhaps"], "--bf16: got perhaps but expected true or false"),
        (["--num_train_epochs", "many"], "--num_train_epochs: invalid float value: 'many'; it must be a number"),
        (["--lora_r"], "--lora_r: expected one argument"),
        (["--lr_scheduler_type", "linaer"], "linaer is not a valid SchedulerType, please select one of"),
        (["emotion"], "unknown option emotion"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        parse_arguments(["--data", "x", "--backbone", "none", *given])
    assert "\n" not in str(refused.value)
