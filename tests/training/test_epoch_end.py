"""A resumed training keeps the trajectories up to its checkpoint, as they were written, and nothing that was cut off."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.evaluation.rows import Evaluation
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.storage.json_files import read_json
from llm_mer.storage.json_text import dump_json
from llm_mer.training.epoch_end import truncate_trajectories


def line(epoch: float, name: str = "labels") -> str:
    return dump_json({"epoch": epoch, "name": name, "points": [[0.1, math.nan]]}) + "\n"


def test_lines_after_the_checkpoint_and_one_that_broke_off_are_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    # A name may hold what some readers take for the end of a line.
    kept = line(0) + line(0, "a\u2028b") + line(1.0) + line(1.5)
    path.write_text(kept + line(2.0) + line(3.0)[:-9], encoding="utf-8")
    truncate_trajectories(path, 1.5)
    assert path.read_text(encoding="utf-8") == kept
    truncate_trajectories(path, 1.5)
    assert path.read_text(encoding="utf-8") == kept
    loaded = LoadedEvaluation(Evaluation("x", {}, "data", "test", 0, 10), {}, tmp_path, tmp_path)
    assert [epoch for epoch, _ in loaded.read_trajectories()["labels"]] == [0.0, 1.0, 1.5]
    truncate_trajectories(path, -1)
    assert path.read_text() == ""


def test_a_line_that_no_training_wrote_ends_the_resume_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_text(line(0) + '{"epoch": true}\n' + line(1))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"trajectories\.jsonl:2: field 'epoch' is True; a training writes a number"):
        truncate_trajectories(path, 5)
    assert path.read_bytes() == before


def test_a_trainers_log_may_hold_nan_which_other_libraries_write(tmp_path: Path) -> None:
    (tmp_path / "log_history.json").write_text('[{"loss": NaN, "epoch": 1.0}]')
    assert math.isnan(read_json(tmp_path / "log_history.json")[0]["loss"])
    (found,) = LoadedEvaluation(Evaluation("x", {}, "data", "test", 0, 10), {}, tmp_path, tmp_path).read_log()
    assert found["epoch"] == 1.0
