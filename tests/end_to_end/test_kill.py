"""Training killed at random moments, again and again, ends with the weights of the run that was left alone, to the bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, adapter_weights, run_environment, training_options

from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.train import finetune
from llm_mer.training.atomic_checkpoints import find_corruption, list_checkpoints

COMMANDS = {
    1: [sys.executable, "-u", "finetune.py"],
    2: [sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "finetune.py"],
}


def options(store: Path, backbone: Path, output: Path, processes: int, **changes: Any) -> list[str]:
    """Two epochs of six steps, each saved; everything that draws random numbers is on."""
    chosen = {
        "adapter": "lsgmer",
        "moving_average_alpha": 0.5,
        "dropout": 0.2,
        "lora_dropout": 0.1,
        "modality_dropout": 0.2,
        "per_device_train_batch_size": 8 // processes,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "resume_from_checkpoint": "true",
    }
    return training_options(store, backbone, output, **{**chosen, **changes})


def start(command: list[str], argv: list[str], errors: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *argv],
        cwd=ROOT,
        env=run_environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=errors.open("a"),
        text=True,
    )


def end(process: subprocess.Popen[str], chance: random.Random, number: int = signal.SIGKILL) -> None:
    """Kill the launcher and its ranks in any order, or one rank alone, which the launcher must notice."""
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "finetune.py" in p.cmdline()]
    if ranks and chance.random() < 0.5:
        chance.choice(ranks).send_signal(number)
    else:
        for each in chance.sample([psutil.Process(process.pid), *ranks], len(ranks) + 1):
            if each.is_running():
                each.send_signal(number)
    process.communicate(timeout=60)
    psutil.wait_procs(ranks, timeout=60)


def train_with_kills(
    command: list[str], argv: list[str], errors: Path, kills: int, chance: random.Random, longest: int = 3
) -> int:
    """Start until the run ends by itself, killing it up to ``kills`` times; returns how often it was killed."""
    done = 0
    while True:
        process = start(command, argv, errors)
        assert process.stdout is not None
        if done == kills:
            assert process.wait(timeout=300) == 0, errors.read_text()[-3000:]
            return done
        left = chance.randint(0, longest)  # logged steps to come before the end
        for line in process.stdout:
            left -= line.startswith("{'loss'")
            if left < 0:
                break
        try:
            code = process.wait(timeout=chance.uniform(0, 0.25))
        except subprocess.TimeoutExpired:
            end(process, chance)
            done += 1
            continue
        assert code == 0, errors.read_text()[-3000:]
        return done


def same_weights(one: Path, two: Path) -> bool:
    first, second = adapter_weights(one), adapter_weights(two)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def left_alone(processes: int, backbone: Path, store: Path, folder: Path) -> Path:
    """The same training, not killed."""
    process = start(COMMANDS[processes], options(store, backbone, folder / "alone", processes), folder / "errors")
    process.communicate(timeout=300)
    assert process.returncode == 0, (folder / "errors").read_text()[-3000:]
    return folder / "alone"


def killed_runs(
    processes: int, kills: int, backbone: Path, store: Path, alone: Path, folder: Path, seed: int, longest: int
) -> None:
    """As many runs as it takes to be killed so often; each must end as the one left alone."""
    chance, done, runs = random.Random(seed), 0, 0
    while done < kills:
        output = folder / f"run-{runs}"
        argv = options(store, backbone, output, processes)
        errors = folder / "errors"
        found = train_with_kills(COMMANDS[processes], argv, errors, kills - done, chance, longest)
        assert found, "a run ended before it could be killed"
        done, runs = done + found, runs + 1
        assert same_weights(output, alone)
        assert RunManifest.load(output).hardware.processes == processes
        assert not [path for path in list_checkpoints(output)[:2] if find_corruption(path) is not None]


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_with_the_weights_of_one_left_alone(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    alone = finetune(options(store, backbones["llama"], tmp_path / "alone", 1))
    killed_runs(1, 1, backbones["llama"], store, alone, tmp_path, seed=1, longest=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_twenty_times_ends_with_the_weights_of_one_left_alone(
    processes: int, backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    alone = left_alone(processes, backbones["llama"], store, tmp_path)
    killed_runs(processes, 20, backbones["llama"], store, alone, tmp_path, seed=2, longest=1)


@pytest.mark.slow
def test_two_ranks_told_to_stop_say_in_one_line_what_to_go_on_from(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    argv = options(store, backbones["llama"], tmp_path / "run", 2, num_train_epochs=50)
    process = start(COMMANDS[2], argv, tmp_path / "errors")
    assert process.stdout is not None
    for _ in range(3):
        next(line for line in process.stdout if line.startswith("{'loss'"))
    process.send_signal(signal.SIGTERM)  # to the launcher, which hands it on
    process.communicate(timeout=60)
    said = [line for line in (tmp_path / "errors").read_text().splitlines() if line.startswith("finetune.py: ")]
    assert len(said) == 1
    assert "stopped by SIGTERM; " in said[0]
    assert f"{list_checkpoints(tmp_path / 'run')[0]} is complete" in said[0]
