"""Ctrl-C once ends the work, twice lets it clean up, three times ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import ROOT, run_environment

from llm_mer.cli.entry_point import run_program
from llm_mer.cli.interrupts import handle_interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _ctrl_c_as_before() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_end_the_clean_up(capfd: pytest.CaptureFixture[str]) -> None:
    done = []

    def work() -> int:
        try:
            press()
            done.append("work")
        finally:
            press()
            done.append("clean-up")
        return 0

    assert run_program("p", work, "interrupted; call it again") == 130
    assert done == ["clean-up"]
    told = ["p: interrupted, and cleaning up; once more ends it at once", "p: interrupted; call it again"]
    assert [line for line in capfd.readouterr().err.splitlines() if line] == told


def test_a_ctrl_c_at_the_very_end_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        press()
        return 0

    assert run_program("p", work) == 130
    press()  # the interpreter is about to end
    assert "cleaning up" in capfd.readouterr().err


def test_a_third_ends_the_process_where_the_clean_up_hangs() -> None:
    program = """
    import os, signal
    from llm_mer.cli.entry_point import run_program
    def work():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            print("still here")
    run_program("p", work)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.removeprefix("    ") for line in program.splitlines())],
        env=run_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_without_a_ctrl_c_and_for_somebody_elses_handler_all_is_as_before() -> None:
    assert run_program("p", lambda: 0) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    own = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGINT, own)
    with handle_interrupts("p") as counted:
        assert signal.getsignal(signal.SIGINT) is own
        press()
    assert counted.received == 0


def test_a_ctrl_c_that_python_ignores_in_a_finaliser_still_ends_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    class Deleted:
        def __del__(self) -> None:
            press()
            sum(range(1000))

    def work() -> int:
        there = Deleted()
        del there
        time.sleep(10)  # the Ctrl-C sent again ends it
        return 0

    before, began = sys.unraisablehook, time.monotonic()
    assert run_program("p", work, "interrupted; call it again") == 130
    assert time.monotonic() - began < 9
    assert [line for line in capfd.readouterr().err.splitlines() if line] == ["p: interrupted; call it again"]
    assert sys.unraisablehook is before
