"""One configuration of a run: replaced, written, compared with a checkpoint's and refused where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_utterances

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.run_differences import RunSetup, resume_may_differ, run_differences
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceFingerprint
from llm_mer.errors import UserError
from llm_mer.experiments.comparison.systems import plan_systems
from llm_mer.experiments.options import CompareConfig
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

Arguments = Callable[..., list[str]]
SAVING: dict[str, Any] = {"max_steps": 1, "limit_train": 8, "save_strategy": "steps", "save_steps": 1}


def test_a_replaced_option_keeps_all_that_was_named_and_defaults_follow_the_adapter(arguments: Arguments) -> None:
    config = parse_arguments(arguments(num_heads=None))
    other = config.replace(adapter="gated_projector", seed=3)
    assert (other.model.adapter, other.training.seed, other.adapter.hidden_size) == ("gated_projector", 3, 16)
    assert type(other.adapter) is not type(config.adapter)
    assert other.model.lora_r == config.model.lora_r == 4
    assert config.training.seed == 7


@pytest.fixture(scope="module")
def saved(store: Path, backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import training_options

    folder = tmp_path_factory.mktemp("saved") / "run"
    return finetune(training_options(store, backbones["llama"], folder, **SAVING))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["instruct"]}, r"another run: tasks and prompts \(sha256\): '\w{12}' there, '\w{12}' here$"),
        ({"context_window": 3}, "another run: context_window: 8 there, 3 here$"),
        ({"lora_targets": ["q_proj"]}, r"another run: lora_targets: None there, \['q_proj'\] here$"),
        ({"per_device_train_batch_size": 4}, "another run: per_device_train_batch_size: 8 there, 4 here$"),
        ({"lr_scheduler_type": "linear"}, "another run: lr_scheduler_type: 'cosine' there, 'linear' here$"),
        ({"weight_decay": 0.5}, "another run: weight_decay: 0.01 there, 0.5 here$"),
        ({"max_steps": 2}, "another run: max_steps: 1 there, 2 here$"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_resumed_run_with_another_option_is_refused(
    changes: dict[str, Any], message: str, saved: Path, arguments: Arguments, no_backbone: None
) -> None:
    again = {**SAVING, "resume_from_checkpoint": saved / "checkpoint-1", **changes}
    with pytest.raises(UserError, match=message):
        build_trainer(parse_arguments(arguments(**again)))


def test_what_is_shown_or_kept_may_differ_in_a_resumed_run(saved: Path, arguments: Arguments, tmp_path: Path) -> None:
    again = {**SAVING, "resume_from_checkpoint": saved / "checkpoint-1", "logging_steps": 5, "save_total_limit": 7}
    build_trainer(parse_arguments(arguments(**again, output=tmp_path / "elsewhere", per_device_eval_batch_size=2)))


def test_a_longer_run_may_go_on_only_where_its_schedule_does_not_depend_on_its_length(saved: Path) -> None:
    setup = CheckpointDescription.load(saved).run
    assert setup is not None

    def told(scheduler: str, warmup: float) -> list[str]:
        one, two = (dataclasses.replace(setup, options={k: dict(v) for k, v in setup.options.items()}) for _ in range(2))
        for each in (one, two):
            each.options["training"] |= {"lr_scheduler_type": scheduler, "warmup_steps": warmup}
        two.options["training"]["num_train_epochs"] = 9.0
        return [difference.name for difference in run_differences(one, two, resume_may_differ(one.options))]

    assert told("constant", 0.1) == told("constant_with_warmup", 10) == []
    assert told("constant_with_warmup", 0.1) == told("linear", 0) == ["num_train_epochs"]


def test_a_checkpoint_holds_every_option_of_its_run(saved: Path, arguments: Arguments) -> None:
    setup = CheckpointDescription.load(saved).run
    assert isinstance(setup, RunSetup)
    options = parse_arguments(arguments(**SAVING)).options()
    places = options["data"].pop("data"), options["model"].pop("backbone")
    named = setup.options["data"].pop("data"), setup.options["model"].pop("backbone")
    assert named == tuple(Path(place).name for place in places), "a folder of this machine says nothing elsewhere"
    assert setup.options["data"] == options["data"]
    assert setup.options["adapter"] == options["adapter"]
    assert setup.options["model"] == options["model"]
    assert setup.options["training"].keys() == options["training"].keys()


def test_lora_of_an_initial_checkpoint_is_recorded_and_another_is_refused(
    saved: Path, arguments: Arguments, tmp_path: Path
) -> None:
    start: dict[str, Any] = {"init_checkpoint": saved, "lora_r": None, "lora_dropout": None, "output": tmp_path / "second"}
    config = parse_arguments(arguments(**start))
    assert (config.model.lora_r, config.model.lora_dropout) == (4, 0.0), "those of the checkpoint, not the defaults"
    trainer = build_trainer(config)
    assert trainer.description is not None
    assert trainer.description.training["lora"]["r"] == 4
    with pytest.raises(UserError, match=r"init_checkpoint: .* has lora_r 4, not 8; its LoRA goes on as it is there"):
        parse_arguments(arguments(**{**start, "lora_r": 8}))
    with pytest.raises(UserError, match=r"has lora_targets None, not \['q_proj'\]"):
        parse_arguments(arguments(**{**start, "lora_targets": ["q_proj"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 would have no effect here: .*not smoothed"),
        ({"max_length": 64}, "max_length: 64 would have no effect here: say max_prompt_tokens"),
        ({"loss_type": "dft"}, "loss_type: 'dft' would have no effect here"),
    ],
)
def test_an_option_without_effect_is_refused(changes: dict[str, Any], message: str, arguments: Arguments) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(arguments(**changes))


@pytest.mark.parametrize(
    "change",
    [{"dialogue_id": "other"}, {"turn": 77}, {"speaker": "Z"}, {"tags": ("conflict",)}],
    ids=lambda c: next(iter(c)),
)
def test_the_data_fingerprint_follows_what_places_an_utterance_in_a_dialogue(change: dict[str, Any]) -> None:
    found = []
    (utterance,) = make_utterances("train", 1)
    for each in (utterance, dataclasses.replace(utterance, **change)):
        fingerprint = UtteranceFingerprint()
        fingerprint.update(each)
        found.append(fingerprint.hexdigest())
    assert found[0] != found[1]


def test_an_ablation_may_name_two_loss_weights_and_no_other_option_twice() -> None:
    config = CompareConfig(config="x", ablations=["egmf:loss_weights=ce=0.5,loss_weights=l1=2"])
    assert plan_systems(config)[1].options == {"loss_weights": ["ce=0.5", "l1=2"]}
    config.ablations = ["egmf:lora_r=1,lora_r=2"]
    with pytest.raises(UserError, match="lora_r is named twice, and it is no list"):
        plan_systems(config)
