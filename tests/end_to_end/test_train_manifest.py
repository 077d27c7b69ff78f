"""``llm-mer train --manifest``: from a table of clips to a model that answers about that table, killed and gone on with."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import run_environment
from own_tables import COLUMNS, MOODS, make_clips, write_table

from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="the media extra is not installed")
SMALL = ("--audio", "librosa", "--workers", "1", "--use_cpu", "true", "--hidden_size", "16", "--num_heads", "2")
SMALL += ("--num_train_epochs", "4", "--disable_tqdm", "true", "--learning_rate", "5e-3", "--dropout", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a table of 24 clips by semicolons, as a spreadsheet program writes it."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "clips.csv", COLUMNS, make_clips(tmp_path, 24), ";")
    return tmp_path


def last_lines(text: str) -> list[list[str]]:
    """The commands that the last lines of the output suggest."""
    return [shlex.split(line) for line in text.splitlines() if line.startswith("  llm-mer infer ")]


def test_one_command_makes_a_model_whose_suggested_commands_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = finetune(["--manifest", "clips.csv", "--backbone", "none", *SMALL], "llm-mer train")
    output = capsys.readouterr().out
    assert model == Path("runs/clips/model")
    for row in ("as is                        mood       all all", "as is                        pleasure   all all"):
        assert row in output
    page = (folder / "runs/clips/report.html").read_text(encoding="utf-8")
    assert "clips.csv: mood, pleasure" in page
    one, table = last_lines(output)
    assert main(one[1:]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["task"] for answer in answers] == ["mood", "pleasure"]
    assert set(answers[0]["probabilities"]) == set(MOODS)
    assert 0 <= answers[1]["value"] <= 100
    assert main(table[1:]) == 0  # the table that was trained on, with its own columns, names and separators
    answers = [json.loads(line) for line in (folder / "runs/clips/answers.jsonl").read_text().splitlines()]
    assert {(a["id"], a["task"]) for a in answers} == {(f"take{n:02d}", t) for n in range(24) for t in ("mood", "pleasure")}
    assert all("error" not in answer for answer in answers)
    assert answers[0]["truth"] == "calm"


@pytest.mark.slow
def test_the_same_command_keeps_what_is_done_and_another_plan_is_refused_or_made_anew(
    folder: Path, caplog: pytest.LogCaptureFixture, backbones: dict[str, Path]
) -> None:
    command = ["--manifest", "clips.csv", "--backbone", str(backbones["llama"]), "--targets", "mood", *SMALL]
    finetune([*command, "--max_steps", "2"], "llm-mer train")
    weights = next((folder / "runs/clips/model").glob("*.safetensors"))
    before = weights.read_bytes()
    with caplog.at_level("INFO"):
        finetune([*command, "--max_steps", "2"], "llm-mer train")
    assert [m for m in caplog.messages if m.endswith("done before")] == [
        f"{step}: done before" for step in ("features", "model", "evaluation")
    ]
    assert weights.read_bytes() == before
    with pytest.raises(UserError, match=r"runs/clips was made otherwise: --max_steps 2 there, 3 here; name another"):
        finetune([*command, "--max_steps", "3"], "llm-mer train")
    finetune([*command, "--max_steps", "3", "--overwrite_output_dir", "true"], "llm-mer train")
    state = json.loads((folder / "runs/clips/model/trainer_state.json").read_text())
    assert state["global_step"] == 3
    make_clips(folder, 27)
    write_table(folder / "clips.csv", COLUMNS, make_clips(folder, 27), ";")
    with pytest.raises(UserError, match=r"the table changed; .*the splits changed"):
        finetune([*command, "--max_steps", "3"], "llm-mer train")


def test_a_dry_run_shows_the_plan_and_makes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    finetune(["--manifest=clips.csv", "--dry-run", "--backbone", "none", "--split-by", "speaker", *SMALL], "llm-mer train")
    output = capsys.readouterr().out
    assert (
        "clips.csv: 24 clips (12 en, 12 zh); read as 'file' as clip, text, speaker; ids are the names of the files" in output
    )
    assert output.endswith("nothing was done; without --dry_run this plan is run\n")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_killed_at_any_step_the_same_command_ends_with_the_same_weights(folder: Path) -> None:
    command = [sys.executable, "-m", "llm_mer", "train", "--manifest", "clips.csv", "--backbone", "none", *SMALL]
    whole = subprocess.run([*command, "--output_dir", "whole"], env=run_environment(), capture_output=True, check=False)
    assert whole.returncode == 0, whole.stderr[-2000:]
    for place in ("features.parts/*.npz", "features/store.json", "model/checkpoint-*/trainer_state.json"):
        process = subprocess.Popen([*command, "--output_dir", "killed"], env=run_environment(), stdout=subprocess.DEVNULL)
        while not any((folder / "killed").glob(place)):
            assert process.poll() is None, f"it ended before there was {place}"
            time.sleep(0.02)
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            each.kill()
        assert process.wait() == -signal.SIGKILL
    last = subprocess.run(
        [*command, "--output_dir", "killed"], env=run_environment(), capture_output=True, text=True, check=False
    )
    assert last.returncode == 0, last.stderr[-2000:]
    assert "features: done before" in last.stderr
    assert (folder / "killed/report.html").is_file()
    for name in ("model/model.safetensors", "scores.txt"):
        one, other = ((folder / run / name).read_bytes() for run in ("whole", "killed"))
        assert one.replace(b"whole", b"killed") == other
