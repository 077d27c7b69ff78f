"""Ctrl-C twice at a random moment leaves nothing half-written, no worker and no traceback, and the command goes on then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from launchers import run_two_rounds

sys.path.insert(0, str(Path(__file__).parent))

import interrupts
from interrupts import COMMANDS, left_behind, what_is_wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_interrupted_twice_cleans_up_and_goes_on(command: str, tmp_path: Path) -> None:
    run_two_rounds(interrupts.__file__, command, 3, tmp_path)


LINE = "llm-mer infer: interrupted; the same command goes on from here"


@pytest.mark.parametrize(
    ("code", "log", "wrong"),
    [
        (130, f"\nllm-mer infer: interrupted, and cleaning up; once more ends it at once\n{LINE}\n", None),
        (0, "", None),
        (None, "", "still running"),
        (130, "", "0 lines say"),
        (130, f"{LINE}\n{LINE}\n", "2 lines say"),
        (1, "x", "exit code 1: x"),
        (130, f"Traceback (most recent call last):\n{LINE}", "a traceback"),
        (130, f"Exception ignored in: <module 'threading'\n{LINE}", "a traceback"),
    ],
)
def test_what_is_wrong_with_an_end_is_seen(code: int | None, log: str, wrong: str | None) -> None:
    found = what_is_wrong(code, log, "infer")
    assert found is None if wrong is None else str(found).startswith(wrong)


def test_half_written_files_are_seen_and_locks_are_none(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / ".output.lock").write_text("")
    assert left_behind(tmp_path) is None
    (tmp_path / "output" / ".a.npz.12.0123abcd.tmp").write_text("")
    assert left_behind(tmp_path) == "left behind: .a.npz.12.0123abcd.tmp"
