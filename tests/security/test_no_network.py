"""No command looks a network name up or connects anywhere, unless a model or data set of a hub is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_utterances, options, run_environment, training_options
from helpers.media_files import clip
from helpers.network_recorder import install

from llm_mer.data.store import write_store

SWITCHES = (
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "CI"),
    *("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"),
)
"""Each of them alone keeps libraries silent, so that a test with them set could not fail."""


class Recorded:
    """Runs programs with every look-up and connection refused and written down."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "network.log"
        self.site = install(folder / "site")

    def run(self, *command: object) -> list[str]:
        """What a program asked of the network; it has to end well."""
        self.log.write_text("", encoding="utf-8")
        path = os.pathsep.join((str(self.site), str(ROOT)))
        environment = run_environment(NETWORK_LOG=str(self.log), PYTHONPATH=path)
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={name: value for name, value in environment.items() if name not in SWITCHES},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        lines = self.log.read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("started") for line in lines)  # the recorder was there
        return [line for line in lines if not line.startswith("started")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "store"
    write_store([*make_utterances("train", 8), *make_utterances("valid", 4), *make_utterances("test", 4)], folder)
    return folder


def test_the_recorder_sees_a_look_up_and_a_connection(recorded: Recorded) -> None:
    program = (
        "import socket, urllib.request\n"
        "for attempt in (lambda: urllib.request.urlopen('http://example.invalid'),"
        " lambda: socket.create_connection(('127.0.0.1', 9))):\n"
        "    try: attempt()\n"
        "    except OSError: pass\n"
        "s = socket.socket()\n"
        "try: s.connect(('127.0.0.1', 9))\n"
        "except OSError: pass\n"
    )
    found = recorded.run("-c", program)
    assert any("example.invalid" in line for line in found)
    assert any(line.startswith("connect ") for line in found)


@pytest.mark.parametrize("backbone", ["llama", pytest.param("none", marks=pytest.mark.slow)])
def test_training_from_the_command_line_asks_no_network(
    recorded: Recorded, small_store: Path, backbones: dict[str, Path], tmp_path: Path, backbone: str
) -> None:
    source = backbones.get(backbone, "none")
    changes = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": "true"}
    tokens = {} if backbone == "llama" else {"num_pseudo_tokens": None, "lora_r": None, "lora_dropout": None}
    command = training_options(small_store, source, tmp_path / "run", max_steps=1, **changes, **tokens)
    assert recorded.run("finetune.py", *command) == []


@pytest.mark.slow
def test_training_from_python_asks_no_network(
    recorded: Recorded, small_store: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    command = training_options(small_store, backbones["llama"], tmp_path / "run", max_steps=1)
    program = f"""
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run import prepare_run
import time
prepare_run(parse_arguments({command!r}), [])
time.sleep(1)  # a report is sent by a thread of its own
"""
    assert recorded.run("-c", program) == []


def test_inference_evaluation_report_and_extraction_ask_no_network(
    recorded: Recorded, trained: Path, small_store: Path, tmp_path: Path
) -> None:
    """One after the other in one process: the first that asks fails."""
    clip(tmp_path / "a.mp4", 1)
    manifest, scores = tmp_path / "manifest.jsonl", tmp_path / "evaluation"
    manifest.write_text('{"id": "a", "video": "a.mp4", "audio": "a.mp4", "text": "I am here", "language": "en"}\n')
    commands = [
        ["infer", *options(checkpoint=trained, text="the train leaves at nine")],
        ["evaluate", *options(checkpoint=trained, data=small_store, output=scores, resamples=10)],
        ["report", *options(evaluations=scores, output=tmp_path / "report.html")],
        ["extract", *options(manifest=manifest, output=tmp_path / "store", workers=1)],
    ]
    program = f"""
import sys, time
from llm_mer.cli.main import main
if __name__ == "__main__":  # workers import this file again
    for command in {commands!r}:
        if code := main(command):
            sys.exit(f"{{command[0]}}: {{code}}")
    time.sleep(1)  # a report is sent by a thread of its own
"""
    (tmp_path / "commands.py").write_text(program, encoding="utf-8")
    assert recorded.run(tmp_path / "commands.py") == []
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "store" / "store.json").is_file()


@pytest.mark.slow
def test_a_comparison_asks_no_network(recorded: Recorded, small_store: Path, tmp_path: Path) -> None:
    names = iter(training_options(small_store, "none", "unused", max_steps=1))
    values = {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(names, names, strict=True)}
    left_out = ("adapter", "output_dir", "seed", "num_pseudo_tokens", "backbone", "tasks", "lora_r", "lora_dropout")
    values = {name: value for name, value in values.items() if name not in left_out}
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump({**values, "tasks": ["emotion"], "learning_rate": 5e-3}), encoding="utf-8")
    compare = options(config=config, output=tmp_path / "out", backbones="none", resamples=10)
    assert recorded.run("-m", "llm_mer", "compare", *compare) == []
