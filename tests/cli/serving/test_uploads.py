"""Uploads lie in a folder of this user's alone, which goes with the program, or after a kill -9 with the next one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, run_environment

from llm_mer.cli.serving.uploads import (
    GRADIO_FOLDER,
    PREFIX,
    bytes_held,
    clean_up_on_signals,
    private_folder,
    remove_older,
)
from llm_mer.errors import UserError
from llm_mer.storage.temporary_folders import remove_abandoned

PROGRAM = """
import sys, time
from llm_mer.cli.serving.uploads import clean_up_on_signals, private_folder
with clean_up_on_signals(), private_folder(60) as folder:
    (folder / "clip.mp4").write_bytes(b"x")
    print("ready", flush=True)
    if sys.argv[1] == "raise":
        raise ValueError
    while True:
        time.sleep(0.05)
"""


def test_the_folder_is_this_users_alone_whatever_the_umask_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GRADIO_FOLDER, str(tmp_path))
    before = os.umask(0)
    try:
        with private_folder(60) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.parent == tmp_path
            assert os.environ[GRADIO_FOLDER] == str(folder)
            (folder / "a").mkdir()
            (folder / "a" / "clip.mp4").write_bytes(b"x")
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []
    assert os.environ[GRADIO_FOLDER] == str(tmp_path)
    monkeypatch.delenv(GRADIO_FOLDER)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with private_folder(60):
        pass
    assert GRADIO_FOLDER not in os.environ


def test_no_place_for_uploads_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRADIO_FOLDER, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"GRADIO_TEMP_DIR=.*gone: no folder for uploads can be made there: No such file"):
        with private_folder(60):
            pass
    monkeypatch.setenv(GRADIO_FOLDER, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"the temporary folder \(TMPDIR\): no folder"):
        with private_folder(60):
            pass


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGTERM),
        (signal.SIGINT, -signal.SIGINT),
        (None, 1),
    ],
)
def test_the_folder_is_removed_when_a_signal_or_an_error_ends_the_program(
    tmp_path: Path, ending: signal.Signals | None, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait" if ending else "raise"],
        env=run_environment(PYTHONPATH=str(ROOT), **{GRADIO_FOLDER: str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if ending is not None:
                assert len(list(tmp_path.iterdir())) == 1
                process.send_signal(ending)
            assert process.wait(30) == code
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with clean_up_on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_uploads_of_a_demo_that_was_killed_go_when_the_next_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = run_environment(PYTHONPATH=str(ROOT), **{GRADIO_FOLDER: str(tmp_path)})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    (left,) = tmp_path.iterdir()
    assert (left / "clip.mp4").exists()
    monkeypatch.setenv(GRADIO_FOLDER, str(tmp_path))
    with private_folder(60) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        os.utime(next(folder.iterdir()), (1, 1))
        remove_older(folder, 1)  # which leaves what says whose the folder is
        assert remove_abandoned(tmp_path, PREFIX) == []
    assert list(tmp_path.iterdir()) == []


def test_old_files_are_removed_and_the_rest_is_counted(tmp_path: Path) -> None:
    for name, size in (("old", 100), ("new", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(b"x" * size)
    assert bytes_held(tmp_path) == 130
    os.utime(tmp_path / "old" / "clip.mp4", (1, 1))
    remove_older(tmp_path, 3600)
    assert bytes_held(tmp_path) == 30


def test_a_file_is_removed_by_itself_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GRADIO_FOLDER, str(tmp_path))
    looked = threading.Event()

    def look(folder: Path, seconds: float) -> None:
        remove_older(folder, seconds)
        looked.set()

    monkeypatch.setattr("llm_mer.cli.serving.uploads.remove_older", look)
    with private_folder(0.05) as folder:
        path = folder / "clip.mp4"
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
        looked.clear()
        assert looked.wait(10)
        assert looked.clear() is None
        assert looked.wait(10)
        assert not path.exists()
