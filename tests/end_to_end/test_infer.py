"""``infer.py`` as its users start it; what needs no process of its own is asked of the same commands in this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_utterances, options, run_environment

from llm_mer.cli.main import main


def start(*argv: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "infer.py", *map(str, argv)],
        cwd=ROOT,
        env=run_environment(),
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_manifest_on_standard_input_is_answered_by_a_checkpoint_that_moved(trained: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained, tmp_path / "elsewhere" / "model"))
    given = '{"id": "a", "text": "the table is in the kitchen"}\n{"id": "b", "text": "桌子在厨房里"}\n'
    result = start("--checkpoint", moved, "--stdin", given=given)
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["id"], line["language"], line["task"]) for line in found] == [
        ("a", "en", "emotion"),
        ("a", "en", "sentiment"),
        ("b", "zh", "emotion"),
        ("b", "zh", "sentiment"),
    ]


def test_features_are_answered_into_a_file_and_a_second_run_adds_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterance = make_utterances("test", 1)[0]
    np.savez(tmp_path / "clip.npz", audio=utterance.audio_features)
    argv = ["--checkpoint", trained, "--features", tmp_path / "clip.npz", "--text", "x", "--output", tmp_path / "out.jsonl"]
    for answers_shown in (2, 0):
        assert main(["infer", *map(str, argv), "--echo"]) == 0
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("clip  ")]) == answers_shown


def test_a_mistake_ends_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    result = start("--checkpoint", tmp_path, "--text", "x")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "it is not a checkpoint written by finetune.py" in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluate_scores_a_checkpoint_under_conditions_and_keeps_its_predictions(
    trained: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(
        checkpoint=trained, data=store, output=tmp_path / "scores", resamples=20, conditions="shuffle:audio,vision"
    )
    assert main(["evaluate", *given]) == 0
    assert "audio and vision shuffled" in capsys.readouterr().out
    rows = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["rows"]
    accuracy = {
        row["condition"]: row["metrics"]["accuracy"]
        for row in rows
        if (row["task"], row["language"], row["subset"]) == ("emotion", "all", "all")
    }
    assert accuracy["as is"] - accuracy["audio and vision shuffled"] > 0.2
    predictions = (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 2 * 2 * 32
