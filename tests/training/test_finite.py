"""A training that comes to NaN or infinity stops at that step, names it, and leaves the checkpoint before it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import torchrun, training_options
from torch import nn

import llm_mer.training.finite
import llm_mer.training.trainer
from llm_mer.cli.train import finetune
from llm_mer.training.atomic_checkpoints import find_corruption, list_checkpoints
from llm_mer.training.finite import MAX_SKIPPED_UPDATES, NotFiniteError, StopWhenNotFinite, largest_value

share = llm_mer.training.trainer.language_model_share
EACH_STEP: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
DRIVER = """
import sys
import torch
import llm_mer.training.trainer as trainer
from llm_mer.cli.entry_point import run_program
from llm_mer.cli.train import finetune
share, calls = trainer.language_model_share, []
def spoilt(loss_sum, *rest):
    calls.append(1)
    nan = len(calls) == 3 and torch.distributed.get_rank() == 1
    return share(loss_sum, *rest) * (float("nan") if nan else 1.0)
trainer.language_model_share = spoilt
def work():
    finetune(sys.argv[1:])
    return 0
sys.exit(run_program("finetune.py", work))
"""


def test_a_loss_that_is_nan_in_one_micro_batch_stops_its_step_and_keeps_the_checkpoint_before(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def spoilt(*given: Any) -> Any:
        calls.append(1)
        return share(*given) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(llm_mer.training.trainer, "language_model_share", spoilt)
    with pytest.raises(
        NotFiniteError, match=r"step 3: the loss is not finite \(loss_lm nan.*checkpoint-2 is complete"
    ) as caught:
        finetune(
            arguments(gradient_accumulation_steps=2, per_device_train_batch_size=4, save_strategy="steps", save_steps=1)
        )
    assert caught.value.exit_code == 1
    assert len(calls) == 6  # the step's other micro-batch was computed, and nothing after it
    newest, *_ = list_checkpoints(tmp_path / "run")
    assert (newest.name, find_corruption(newest)) == ("checkpoint-2", None)
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "run_manifest.json").read_text())["finished"] is None


def test_an_update_that_ruins_the_weights_stops_in_its_own_step(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        NotFiniteError, match=r"step 2: the update made \d+ weights NaN or infinite, e\.g\. .*checkpoint-1 is"
    ):
        finetune(arguments(learning_rate="1e39", save_strategy="steps", save_steps=1))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_loss_that_is_nan_on_one_of_two_processes_stops_both_at_once(
    store: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    options = training_options(store, backbones["llama"], tmp_path / "run", per_device_train_batch_size=4)
    done = torchrun(2, driver, *options, "--save_strategy", "steps", "--save_steps", "1")
    assert done.returncode != 0
    assert done.stderr.count("training stopped at step 3: the loss is not finite") == 2, done.stderr[-3000:]
    assert "checkpoint-2 is complete" in done.stderr
    assert 'driver.py", line' not in done.stderr  # the launcher shows a traceback of its own


class Skipping:
    """Of a trainer only what the callback asks for: a scaler that skips updates, weights and losses that are finite."""

    def __init__(self, skipped: bool) -> None:
        self.model = SimpleNamespace(named_parameters=dict, named_buffers=dict)
        self.accelerator = SimpleNamespace(optimizer_step_was_skipped=skipped)
        self.checkpoint_folder = Path("nowhere")


def test_updates_that_a_loss_scaler_skips_are_no_fault_until_no_scale_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_mer.training.finite, "fusion_adapter_of", lambda model: nn.Module())
    trainer = Skipping(True)
    trainer.model = nn.Linear(2, 2)
    callback = StopWhenNotFinite(trainer)
    arguments = SimpleNamespace(device=torch.device("cpu"), world_size=1)

    def step(number: int) -> None:
        callback.on_step_begin(arguments, None, None)
        callback.note(torch.tensor(0.5, dtype=torch.float16))
        callback.on_step_end(arguments, SimpleNamespace(global_step=number), None)

    for number in range(1, MAX_SKIPPED_UPDATES + 1):
        step(number)
    trainer.accelerator.optimizer_step_was_skipped = False
    step(MAX_SKIPPED_UPDATES + 1)
    trainer.accelerator.optimizer_step_was_skipped = True
    for number in range(MAX_SKIPPED_UPDATES):
        step(number)
    with pytest.raises(NotFiniteError, match=f"step 1000: gradients .* {MAX_SKIPPED_UPDATES + 1} updates were skipped"):
        step(1000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_value_overflows_in_no_type_and_tells_nan(dtype: torch.dtype) -> None:
    parts = [torch.full((4096,), 60000.0, dtype=dtype), torch.zeros(0, dtype=dtype), torch.full((2, 2), -3.0, dtype=dtype)]
    assert float(largest_value(parts, torch.device("cpu"))) == pytest.approx(60000, rel=0.01)
    parts[2][0, 1] = float("nan")
    assert math.isnan(float(largest_value(parts, torch.device("cpu"))))
    parts[2][0, 1] = float("-inf")
    assert float(largest_value(parts, torch.device("cpu"))) == float("inf")


def test_what_is_logged_is_json_though_a_metric_is_unknown(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llm_mer.training.trainer, "summarise", lambda *_: {"eval_sentiment_en_corr": float("nan"), "eval_score": 0.5}
    )
    monkeypatch.setattr("llm_mer.training.run.print_evaluation", lambda *_: None)
    finetune(arguments(eval_strategy="epoch"))
    text = (tmp_path / "run" / "log_history.json").read_text()
    assert "NaN" not in text
    assert "eval_score" in text
    assert "NaN" not in (tmp_path / "run" / "trainer_state.json").read_text()
