"""``finetune.py`` started as its users start it, and what a run left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_environment

from llm_mer.data.store import UtteranceStore
from llm_mer.inference.pipeline import MerPipeline

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


def run_two_rounds(program: str, command: str, seed: int, folder: Path) -> None:
    """Let ``tests/faults/kills.py`` or ``interrupts.py`` disturb a command twice, which must end as it says it should."""
    done = subprocess.run(
        [sys.executable, program, command, "--rounds", "2", "--seed", str(seed), "--folder", str(folder)],
        cwd=ROOT,
        env=run_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{command} 2/2" in done.stdout


def history(folder: Path) -> list[dict[str, float]]:
    return [line for line in json.loads((folder / "log_history.json").read_text()) if "loss" in line]


def answers(folder: Path, store: Path) -> list[str | float]:
    return [p.value for p in MerPipeline.from_pretrained(folder)(list(UtteranceStore.open(store).split("test"))[:6])]


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
