"""``finetune.py`` as its users start it: accelerate, two ranks by torchrun, DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, adapter_weights, run_environment, training_options

from llm_mer.checkpoints.description import TRAJECTORIES
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.training.atomic_checkpoints import find_corruption

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]


def launch(command: list[str], argv: list[str], timeout: int = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *([] if any(part.endswith(".py") for part in command) else ["finetune.py"]), *argv],
        cwd=ROOT,
        env=run_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def history(folder: Path) -> list[dict[str, float]]:
    return [line for line in json.loads((folder / "log_history.json").read_text()) if "loss" in line]


def answers(folder: Path, store: Path) -> list[str | float]:
    return [p.value for p in MerPipeline.from_pretrained(folder)(list(UtteranceStore.open(store).split("test"))[:6])]


def test_accelerate_trains_evaluates_and_leaves_a_checkpoint_that_answers(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"tasks: [emotion, sentiment]\ndata: {store}\nmax_steps: 3\neval_strategy: steps\neval_steps: 3\n")
    argv = training_options(
        None,
        backbones["llama"],
        tmp_path / "run",
        tasks=None,
        eval_strategy=None,
        num_train_epochs=None,
        config=config,
    )
    result = launch(ACCELERATE, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "emotion [en] n=16: accuracy" in result.stdout
    assert len(history(tmp_path / "run")) == 3
    assert len(answers(tmp_path / "run", store)) == 12


def test_a_mistake_ends_in_one_line_without_a_traceback(store: Path, tmp_path: Path) -> None:
    argv = training_options(store, "none", tmp_path / "run", tasks=["mood"])
    result = launch([sys.executable], argv)
    assert result.returncode == 2
    assert "finetune.py: unknown task 'mood'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("how", ["options", pytest.param("file", marks=pytest.mark.slow)])
def test_accelerate_on_a_cpu_asked_for_two_processes_is_refused_with_the_command_that_works(
    how: str, store: Path, tmp_path: Path
) -> None:
    """accelerate starts one process here and says nothing."""
    config = tmp_path / "accelerate.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    asked = {"options": ["--cpu", "--num_processes", "2"], "file": ["--config_file", str(config)]}[how]
    result = launch([*ACCELERATE[:3], "--quiet", *asked], training_options(store, "none", tmp_path / "run"))
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("finetune.py: ")]
    assert "asked for several processes and started one" in line
    assert "torchrun --standalone --nproc_per_node N finetune.py" in line
    assert not (tmp_path / "run").exists()


def test_two_ranks_end_with_the_weights_of_one_process_with_twice_the_batch(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    shared = {
        "auxiliary_head": "true",
        "learning_rate": "1e-3",
        "max_steps": 6,
        "limit_eval": 6,
        "eval_strategy": "steps",
        "eval_steps": 6,
    }
    outputs = {ranks: tmp_path / f"ranks-{ranks}" for ranks in (1, 2)}
    for ranks, output in outputs.items():
        argv = training_options(store, backbones["llama"], output, per_device_train_batch_size=8 // ranks, **shared)
        result = launch([*TORCHRUN, str(ranks)], argv)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("emotion [en] n=3: accuracy") == 1
    state = [json.loads((output / "trainer_state.json").read_text()) for output in outputs.values()]
    assert state[0]["train_batch_size"] == 2 * state[1]["train_batch_size"] == 8
    assert state[0]["epoch"] == state[1]["epoch"], "the second run was no run of two ranks"
    for one, two in zip(*(history(output) for output in outputs.values()), strict=True):
        for name in ("loss", "loss_ce"):
            assert float(one[name]) == pytest.approx(float(two[name]), abs=5e-3), name
    first, second = (adapter_weights(output) for output in outputs.values())
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    assert answers(outputs[1], store) == answers(outputs[2], store)


def deepspeed_lacks() -> str | None:
    """Why DeepSpeed cannot run here."""
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if shutil.which("g++") is None:
        return "no g++, and DeepSpeed builds an operator on its first run"
    if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
        return "no ninja, and DeepSpeed builds an operator on its first run"
    return None


needs_deepspeed = pytest.mark.skipif(deepspeed_lacks() is not None, reason=str(deepspeed_lacks()))


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
        pytest.param("zero2", marks=needs_deepspeed),
        pytest.param("zero3", marks=[needs_deepspeed, pytest.mark.slow]),
        pytest.param("zero3_offload", marks=[needs_deepspeed, pytest.mark.slow]),
        "fsdp2",
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
    assert f"checkpoint-4 is not whole ({part.relative_to(output / 'checkpoint-4')}" in result.stderr
    found = adapter_weights(output / "checkpoint-4")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert find_corruption(output / "checkpoint-4") is None


AVERAGED = {
    "adapter": "lsgmer",
    "moving_average_alpha": 0.5,
    "learning_rate": "1e-2",
    "limit_train": 16,
    "num_train_epochs": 3,
}
"""Six steps in which the moving average moves far."""


@pytest.fixture(scope="module")
def averaged(backbones: dict[str, Path], store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LSGMER's three epochs on one process, with the moving average of its label embeddings and without."""
    folder = tmp_path_factory.mktemp("averaged")
    return {
        name: finetune(
            training_options(
                store, backbones["llama"], folder / name, per_device_train_batch_size=8, use_moving_average=on, **AVERAGED
            )
        )
        for name, on in (("with", "true"), ("without", "false"))
    }


@pytest.mark.parametrize("launcher", ["gloo", pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow])])
def test_the_moving_average_on_two_ranks_is_that_of_one_process(
    launcher: str, averaged: dict[str, Path], backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    """One epoch would not tell: what DeepSpeed undoes it undoes at the next step, and a checkpoint may come before."""
    argv = training_options(
        store,
        backbones["llama"],
        tmp_path / "run",
        deepspeed=None if launcher == "gloo" else ROOT / "deepspeed_configs" / f"{launcher}.json",
        per_device_train_batch_size=4,
        **AVERAGED,
    )
    result = launch([*TORCHRUN, "2"], argv)
    assert result.returncode == 0, result.stderr[-3000:]

    def labels(folder: Path) -> torch.Tensor:
        (found,) = (v for name, v in adapter_weights(folder).items() if name.endswith("label_embeddings"))
        return found

    def drifts(folder: Path) -> list[float]:
        return [line["label_drift"] for line in history(folder) if "label_drift" in line]

    found, expected = labels(tmp_path / "run"), labels(averaged["with"])
    assert float((labels(averaged["without"]) - expected).abs().max()) > 1e-2
    assert torch.allclose(found, expected, atol=2e-4), float((found - expected).abs().max())
    assert drifts(tmp_path / "run") == pytest.approx(drifts(averaged["with"]), rel=1e-2)
    followed = [(folder / TRAJECTORIES).read_text().splitlines() for folder in (tmp_path / "run", averaged["with"])]
    for one, two in zip(*followed, strict=True):
        assert torch.allclose(torch.tensor(json.loads(one)["points"]), torch.tensor(json.loads(two)["points"]), atol=2e-4)


@pytest.mark.slow
def test_two_ranks_train_two_seeds_keep_them_and_reproduce_one(store: Path, tmp_path: Path) -> None:
    argv = training_options(
        store,
        "none",
        tmp_path / "run",
        use_text="false",
        seeds=[1, 2],
        limit_train=16,
        limit_eval=6,
        per_device_train_batch_size=4,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    for before in (False, True):
        result = launch([*TORCHRUN, "2"], argv)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("mean ± std") == 1
        assert ("finished before" in result.stderr) == before
    manifest = RunManifest.load(tmp_path / "run" / "seed-2")
    assert (manifest.hardware.processes, manifest.steps, manifest.complete) == (2, 2, True)
    again = subprocess.run(
        [*TORCHRUN, "2", "-m", "llm_mer", "reproduce", str(tmp_path / "run" / "seed-2")],
        cwd=ROOT,
        env=run_environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("agrees bit for bit") == 1
