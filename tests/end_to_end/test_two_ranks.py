"""``finetune.py`` on two ranks by torchrun: the weights of one process with twice the batch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, adapter_weights, run_environment, training_options
from launchers import TORCHRUN, answers, history, launch, needs_deepspeed

from llm_mer.checkpoints.description import TRAJECTORIES
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.train import finetune


def test_two_ranks_end_with_the_weights_of_one_process_with_twice_the_batch(
    backbones: dict[str, Path], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {
        "auxiliary_head": "true",
        "read_out": "true",
        "learning_rate": "1e-3",
        "max_steps": 6,
        "limit_eval": 6,
        "eval_strategy": "steps",
        "eval_steps": 6,
    }
    outputs = {ranks: tmp_path / f"ranks-{ranks}" for ranks in (1, 2)}
    argv = {
        ranks: training_options(store, backbones["llama"], output, per_device_train_batch_size=8 // ranks, **shared)
        for ranks, output in outputs.items()
    }
    finetune(argv[1])
    result = launch([*TORCHRUN, "2"], argv[2])
    assert result.returncode == 0, result.stderr[-3000:]
    for printed in (capsys.readouterr().out, result.stdout):
        assert printed.count("emotion [en] n=3: accuracy") == 1
    state = [json.loads((output / "trainer_state.json").read_text()) for output in outputs.values()]
    assert state[0]["train_batch_size"] == 2 * state[1]["train_batch_size"] == 8
    assert state[0]["epoch"] == state[1]["epoch"], "the second run was no run of two ranks"
    for one, two in zip(*(history(output) for output in outputs.values()), strict=True):
        for name in ("loss", "loss_ce", "loss_read_out"):
            assert float(one[name]) == pytest.approx(float(two[name]), abs=5e-3), name
    first, second = (adapter_weights(output) for output in outputs.values())
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    assert answers(outputs[1], store) == answers(outputs[2], store)


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


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["gloo", pytest.param("zero2", marks=needs_deepspeed)])
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
