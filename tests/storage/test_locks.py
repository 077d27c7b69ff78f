"""One writer at a time, named to the second; a lock never outlives its process, and no file of it stays."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from lock_holder import hold

from llm_mer.errors import UserError
from llm_mer.storage.locks import LockOwner, is_lock_file, lock_output, lock_path


@pytest.mark.parametrize("name", ["folder", "answers.jsonl"])
def test_the_second_is_told_who_writes_and_since_when(tmp_path: Path, name: str) -> None:
    other = hold(tmp_path / name)
    owner = LockOwner.read(lock_path(tmp_path / name))
    assert owner is not None
    with pytest.raises(UserError) as caught, lock_output(tmp_path / name):
        pass
    assert str(caught.value).startswith(
        f"{tmp_path / name} is being written by process {other.pid} on {os.uname().nodename}"
    )
    assert owner.since in str(caught.value)
    assert "\n" not in str(caught.value)
    other.communicate("")
    with lock_output(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_owner_holds_nothing_and_its_file_is_taken_over(tmp_path: Path) -> None:
    other = hold(tmp_path / "out")
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert lock_path(tmp_path / "out").is_file()
    with lock_output(tmp_path / "out"):
        owner = LockOwner.read(lock_path(tmp_path / "out"))
        assert owner is not None
        assert owner.process == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_child_that_outlives_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    """As data loading workers do, for some seconds."""
    other = hold(tmp_path / "out", "fork", "30")
    child = psutil.Process(other.pid).children()[0]
    other.kill()
    other.wait()
    try:
        with lock_output(tmp_path / "out"):
            assert child.is_running()
    finally:
        child.kill()


def test_one_place_has_one_lock_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    other = hold(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for name in ("link", "real", "./real/../real/"):
        with pytest.raises(UserError, match="is being written"), lock_output(name):
            pass
    other.communicate("")


def test_the_same_thread_may_hold_it_twice_and_no_other(tmp_path: Path) -> None:
    refused: list[str] = []

    def attempt() -> None:
        try:
            with lock_output(tmp_path / "out"):
                pass
        except UserError as error:
            refused.append(str(error))

    with lock_output(tmp_path / "out"):
        with lock_output(tmp_path / "out"):
            pass
        assert lock_path(tmp_path / "out").is_file()
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(refused) == 1
    attempt()
    assert len(refused) == 1


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_output(tmp_path / "out"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_parent_is_read_only_is_locked_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # tests may run as root
    with lock_output(folder):
        assert [path.name for path in tmp_path.iterdir()] == ["mounted"]
        assert [is_lock_file(path.name) for path in folder.iterdir()] == [True]
    assert not list(folder.iterdir())


def test_a_place_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be locked for writing"), lock_output(tmp_path / "file" / "out"):
        pass


def test_a_disk_too_full_for_the_owners_name_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(UserError, match="No space left on device"), lock_output(tmp_path / "out"):
            pass
    assert not list(tmp_path.iterdir())
    with lock_output(tmp_path / "out"):
        pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_output(tmp_path / "out"):
        pass
    assert "has no locks" in caplog.text


def test_importing_is_light() -> None:
    code = "import sys, llm_mer.storage.locks; print('filelock' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~/store", "~/store: only a shell replaces '~', and here none did"),
        ("$DATA/store", r"\$DATA/store: only a shell replaces '\$DATA'"),
        ("${DATA}/store", r"only a shell replaces '\$\{DATA\}'"),
        (".", "'.' has no name of its own; write the path of a folder out: /"),
        ("store/..", "has no name of its own"),
    ],
)
def test_a_path_that_no_shell_has_replaced_is_not_written_to(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message), lock_output(path):
        pass
    assert not list(tmp_path.iterdir())
