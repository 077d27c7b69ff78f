"""Each command killed at a random moment and called again ends with what an undisturbed run ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launchers import run_two_rounds

sys.path.insert(0, str(Path(__file__).parent))

import kills
from kill_jobs import JOBS, OUTPUT, Job
from kills import Kills, Round, read_rounds, table


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", JOBS)
def test_a_command_killed_twice_ends_as_an_undisturbed_one(command: str, tmp_path: Path) -> None:
    run_two_rounds(kills.__file__, command, 5, tmp_path)


def places(folder: Path) -> tuple[Kills, Path, Path]:
    found, right = folder / "found", folder / "right"
    for place in (found, right):
        (place / OUTPUT).mkdir(parents=True)
        (place / OUTPUT / "rows.jsonl").write_text('{"value": 1, "seconds": 0.5}\n{"value": 2, "seconds": 1}\n')
    return Kills(folder, 0), found, right


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(JOBS, "job", Job(lambda *_: [], ("*.jsonl",), exactly=False))
    return "job"


def test_results_that_differ_in_clock_readings_alone_are_the_same(tmp_path: Path, job: str) -> None:
    runner, found, right = places(tmp_path)
    (found / OUTPUT / "rows.jsonl").write_text('{"value": 1, "seconds": 7}\n{"value": 2, "seconds": 8}\n')
    assert runner.difference(job, found, right) is None


@pytest.mark.parametrize("text", ['{"value": 1}\n', '{"value": 1}\n{"value": 3}\n', '{"value": 2}\n{"value": 1}\n'])
def test_a_lost_a_changed_and_a_moved_row_are_differences(text: str, tmp_path: Path, job: str) -> None:
    runner, found, right = places(tmp_path)
    (found / OUTPUT / "rows.jsonl").write_text(text)
    assert runner.difference(job, found, right) == "other results: rows.jsonl"


@pytest.mark.parametrize("name", [".output.staging-0123456789ab/x", "output.parts/x", "output/.rows.1.0123abcd.tmp"])
def test_what_a_kill_left_behind_is_a_difference(name: str, tmp_path: Path, job: str) -> None:
    runner, found, right = places(tmp_path)
    (found / name).parent.mkdir(exist_ok=True)
    (found / name).write_text("half")
    assert str(runner.difference(job, found, right)).startswith("left behind: ")


def test_rounds_of_the_same_seed_are_not_done_again(tmp_path: Path) -> None:
    rounds = [Round("infer", 0, 1, 0.5, True, None), Round("infer", 1, 1, 0.7, False, "exit code 1: x")]
    lines = [json.dumps(vars(each)) for each in [*rounds, Round("infer", 2, 9, 0.1, False, None)]]
    (tmp_path / "rounds.jsonl").write_text("\n".join([*lines, '{"command": "inf']))
    assert list(read_rounds(tmp_path / "rounds.jsonl", 1).values()) == rounds
    assert table(rounds).splitlines()[-1] == "| infer | 2 | 0.50 to 0.70 | 1 | 1: exit code 1: x |"
