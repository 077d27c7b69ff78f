"""Exit codes: 2 and one line for a user's mistake, 130 for Ctrl-C, a traceback for a defect."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mer.cli.entry_point import REMOTE_CODE_OPT_OUT, TELEMETRY_OPT_OUT, run_program
from llm_mer.cli.library_messages import PROGRESS_BAR_OPT_OUT
from llm_mer.errors import UserError


def raises(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


class Stopped(UserError):
    """With an exit code of its own."""

    exit_code = 143


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


class SafetensorError(Exception):
    """As safetensors' is called."""


def wrapped() -> Exception:
    """An error of a library's around the system's own."""
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/locked/x.arrow")
        except OSError as cause:
            raise ValueError("the writer failed") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "memory is exhausted (MemoryError); take smaller batches: --batch_size"),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            "(CUDA out of memory. Tried to allocate 2 GiB)",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "memory is exhausted (Default"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "written or read: I/O error: Permission denied"),
        (OSError(errno.EROFS, "Failed to open local file 'x'. Detail: [errno 30]"), "written or read: [Errno 30] Failed to"),
        (wrapped(), "p: /locked/x.arrow: Permission denied"),
    ],
)
def test_what_the_machine_is_to_blame_for_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("p", raises(error)) == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("3 (os error 2)"), KeyError("x")])
def test_a_defect_keeps_its_traceback_whatever_it_says(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_program("p", raises(error))


def test_work_that_goes_well_ends_with_its_own_code() -> None:
    assert run_program("p", lambda: 0) == 0
    assert run_program("p", lambda: 1) == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x: no such file"), 2, "p: x: no such file"),
        (Stopped("stopped by SIGTERM"), 143, "p: stopped by SIGTERM"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/locked/out"),
            2,
            "p: /locked/out: Permission denied; give this user access to it, or name another path",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/ro/out"),
            2,
            "p: /ro/out: Read-only file system; name a path on a disk that can be written",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/out"),
            2,
            "p: /full/out: No space left on device; make room on its disk, and the same command can be run again",
        ),
        (
            OSError(errno.EFBIG, "File too large", "/limited/out"),
            2,
            "p: /limited/out: File too large; no file of that size is allowed there (`ulimit -f` tells a limit); raise it, "
            "or name another disk",
        ),
    ],
)
def test_a_users_mistake_is_one_line(error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("p", raises(error)) == code
    printed = capsys.readouterr()
    assert printed.err == line + "\n"
    assert printed.out == ""


def test_a_file_in_a_folders_place_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"

    def work() -> int:
        place.mkdir()
        return 0

    assert run_program("p", work) == 2
    advice = "there is a file where a folder is needed; name another path"
    assert capsys.readouterr().err == f"p: {place}: Not a directory; {advice}\n"


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("no errno")]
)
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_program("p", raises(error))


def test_ctrl_c_is_130_with_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("p", raises(KeyboardInterrupt()), "interrupted; call it again") == 130
    assert capsys.readouterr().err == "\np: interrupted; call it again\n"


def test_of_several_processes_each_but_the_first_names_its_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_mer.cli.entry_point.shutdown_process_group", lambda: None)
    for rank, line in (("0", "p: no\n"), ("3", "p (process 3): no\n")):
        monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
        monkeypatch.setitem(os.environ, "RANK", rank)
        assert run_program("p", raises(UserError("no"))) == 2
        assert capsys.readouterr().err == line


def test_usage_reports_of_libraries_are_off_in_a_program_unless_the_user_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert run_program("p", lambda: 0) == 0
    assert environment == {
        **TELEMETRY_OPT_OUT,
        **REMOTE_CODE_OPT_OUT,
        **PROGRESS_BAR_OPT_OUT,
        "HF_HUB_DISABLE_TELEMETRY": "0",
    }
