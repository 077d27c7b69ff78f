"""``finetune.py`` on two ranks under the shipped DeepSpeed and FSDP2 files: the run of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, adapter_weights, training_options
from launchers import TORCHRUN, answers, history, launch, needs_deepspeed

from llm_mer.cli.train import finetune
from llm_mer.training.atomic_checkpoints import find_corruption


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_zero2_trains_on_two_ranks_and_its_checkpoint_loads(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    argv = training_options(
        store,
        backbones["llama"],
        tmp_path / "run",
        deepspeed=ROOT / "deepspeed_configs" / "zero2.json",
        per_device_train_batch_size=4,
        auxiliary_head="true",
        max_steps=4,
        limit_eval=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end="true",
    )
    result = launch([*TORCHRUN, "2"], argv)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = history(tmp_path / "run")
    assert len(lines) == 4
    assert all({"loss_lm", "loss_ce"} <= line.keys() for line in lines)
    assert len(answers(tmp_path / "run", store)) == 6
    start = adapter_weights(tmp_path / "run")
    assert any(bool(value.abs().sum() > 0) for name, value in start.items() if "lora_B" in name)


SHARDED = {
    "tasks": ["emotion", "sentiment"],
    "auxiliary_head": "true",
    "learning_rate": "1e-3",
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "limit_eval": 8,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": "true",
}


def sharded_launch(config: str | None, fsdp: Path) -> tuple[list[str], dict[str, str]]:
    """Two ranks under a shipped DeepSpeed file, FSDP2 (``fsdp`` is its accelerate file) or DDP: program and options."""
    program = ["finetune.py"]
    if config == "fsdp2":
        program = ["tests/helpers/fsdp_on_cpu.py", str(fsdp)]
    shipped = {} if config in (None, "fsdp2") else {"deepspeed": f"deepspeed_configs/{config}.json"}
    return [*TORCHRUN, "2", *program], shipped


@pytest.fixture
def fsdp_in_float32(tmp_path: Path) -> Path:
    """The shipped accelerate file for FSDP2, without bf16, whose rounding would hide what is compared."""
    shipped = (ROOT / "accelerate_configs" / "fsdp2.yaml").read_text()
    assert "mixed_precision: bf16" in shipped
    path = tmp_path / "fsdp2.yaml"
    path.write_text(shipped.replace("mixed_precision: bf16", 'mixed_precision: "no"'))
    return path


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param("zero3_offload", marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param("fsdp2", marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.slow, id="ddp"),
    ],
)
def test_however_it_is_sharded_a_run_of_two_ranks_is_that_of_one_process(
    config: str | None, fsdp_in_float32: Path, backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    """The shipped files: losses by name, gradient norms, evaluation, weights and answers.

    For FSDP2 accelerate was told that a CPU is a GPU (``fsdp_on_cpu.py``), and computes in float32.
    """
    one = finetune(training_options(store, backbones["llama"], tmp_path / "one", per_device_train_batch_size=8, **SHARDED))
    two = tmp_path / "two"
    command, shipped = sharded_launch(config, fsdp_in_float32)
    argv = training_options(store, backbones["llama"], two, per_device_train_batch_size=4, **shipped, **SHARDED)
    result = launch(command, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = [history(folder) for folder in (one, two)]
    assert len(steps[0]) == len(steps[1]) == 4
    for expected, found in zip(*steps, strict=True):
        for name in ("loss", "loss_lm", "loss_ce", "loss_l1", "grad_norm"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3), name
    evaluations = [
        [line for line in json.loads((folder / "log_history.json").read_text()) if "eval_score" in line]
        for folder in (one, two)
    ]
    for expected, found in zip(*evaluations, strict=True):
        for name in ("eval_loss", "eval_score", "eval_emotion_en_accuracy", "eval_emotion_zh_n"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3), name
    for folder in ("checkpoint-4", "."):
        first, second = (adapter_weights(run / folder) for run in (one, two))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.allclose(value, second[name], atol=5e-5), name
    assert answers(one, store) == answers(two, store)
    assert find_corruption(two / "checkpoint-4") is None
    states = list((two / "checkpoint-4").glob("global_step4/*optim_states.pt"))
    assert len(states) == (2 if shipped else 0), "each rank has its part of the optimiser"
    assert (two / "checkpoint-4" / "pytorch_model_fsdp.bin").is_file() == (config == "fsdp2")


@pytest.mark.slow
def test_fsdp2_trains_an_adapter_alone_as_one_process_does(fsdp_in_float32: Path, store: Path, tmp_path: Path) -> None:
    """accelerate was told that a CPU is a GPU (``fsdp_on_cpu.py``). There is no embedding table for it to find."""
    changes = {**SHARDED, "use_text": "false"}
    one = finetune(training_options(store, "none", tmp_path / "one", per_device_train_batch_size=8, **changes))
    command, _ = sharded_launch("fsdp2", fsdp_in_float32)
    argv = training_options(store, "none", tmp_path / "two", per_device_train_batch_size=4, **changes)
    result = launch(command, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    for expected, found in zip(history(one), history(tmp_path / "two"), strict=True):
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-3)
    found = adapter_weights(tmp_path / "two")
    for name, value in adapter_weights(one).items():
        assert torch.allclose(value, found[name], atol=5e-5), name


@pytest.mark.slow
def test_fsdp2_as_shipped_trains_in_bf16_near_one_process_and_its_checkpoint_answers(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    """accelerate was told that a CPU is a GPU (``fsdp_on_cpu.py``)."""
    one = finetune(training_options(store, backbones["llama"], tmp_path / "one", per_device_train_batch_size=8, **SHARDED))
    command, _ = sharded_launch("fsdp2", ROOT / "accelerate_configs" / "fsdp2.yaml")
    argv = training_options(store, backbones["llama"], tmp_path / "two", per_device_train_batch_size=4, **SHARDED)
    result = launch(command, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    for expected, found in zip(history(one), history(tmp_path / "two"), strict=True):
        for name in ("loss", "loss_ce", "grad_norm"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=2e-2), name
        assert found["loss"] != expected["loss"], "computed in float32"
    assert len(answers(tmp_path / "two", store)) == 12
    assert all(value.dtype == torch.float32 for value in adapter_weights(tmp_path / "two").values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "state"),
    [
        pytest.param("zero2", "global_step4/*optim_states.pt", marks=needs_deepspeed),
        pytest.param("zero3", "global_step4/*optim_states.pt", marks=needs_deepspeed),
        ("fsdp2", "optimizer.bin"),
    ],
)
def test_a_sharded_run_goes_on_from_the_last_whole_checkpoint_with_the_weights_of_one_left_alone(
    config: str, state: str, fsdp_in_float32: Path, backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    command, shipped = sharded_launch(config, fsdp_in_float32)
    changes = {**SHARDED, "dropout": 0.2, "per_device_train_batch_size": 4, **shipped}
    output = tmp_path / "run"
    argv = training_options(store, backbones["llama"], output, resume_from_checkpoint="true", **changes)
    result = launch(command, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    expected = adapter_weights(output / "checkpoint-4")
    part = next((output / "checkpoint-4").glob(state))
    part.write_bytes(part.read_bytes()[:1000])
    result = launch(command, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"checkpoint-4 is incomplete ({part.relative_to(output / 'checkpoint-4')}" in result.stderr
    found = adapter_weights(output / "checkpoint-4")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert find_corruption(output / "checkpoint-4") is None
