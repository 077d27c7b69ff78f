"""A temporary folder goes with its program, and after a kill -9 with the next one; nothing else goes."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_environment

from llm_mer.storage.temporary_folders import OWNER_FILE, remove_abandoned, temporary_folder

PREFIX = "llm-mer-test-"
PROGRAM = """
import sys, time
from llm_mer.storage.temporary_folders import temporary_folder
with temporary_folder(sys.argv[1], sys.argv[2]) as folder:
    (folder / "clip.mp4").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


def begin(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A program that holds a folder below ``place``."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, PREFIX, str(place)],
        env=run_environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_program_left_goes_when_the_next_begins_and_a_living_ones_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed, left = begin(tmp_path)
    living, used = begin(tmp_path)
    with killed, living:
        try:
            killed.send_signal(signal.SIGKILL)
            killed.wait(30)
            assert (left / "clip.mp4").exists()
            with caplog.at_level(logging.INFO, "llm_mer"), temporary_folder(PREFIX, str(tmp_path)) as folder:
                assert sorted(tmp_path.iterdir()) == sorted([used, folder])
                assert (used / "clip.mp4").exists()
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert f"{left} was left by a program that was killed; removed" in caplog.text
        finally:
            killed.kill()
            living.kill()
    assert not folder.exists()


def test_nothing_is_removed_that_no_program_of_this_kind_made(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for path in (tmp_path / f"{PREFIX}notes", tmp_path / "other-kind", elsewhere):
        path.mkdir()
        (path / "mine.txt").write_text("kept")
    (elsewhere / OWNER_FILE).write_text("")
    (tmp_path / "other-kind" / OWNER_FILE).write_text("")
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{PREFIX}file").write_text("kept")
    linked = tmp_path / f"{PREFIX}linked-owner"
    linked.mkdir()
    (linked / OWNER_FILE).symlink_to(elsewhere / OWNER_FILE)
    before = sorted(tmp_path.rglob("*"))
    assert remove_abandoned(tmp_path, PREFIX) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_another_users_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"{PREFIX}x"
    folder.mkdir()
    (folder / OWNER_FILE).write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        assert remove_abandoned(tmp_path, PREFIX) == []
    assert remove_abandoned(tmp_path, PREFIX) == [folder]


def test_what_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with temporary_folder(PREFIX, str(tmp_path)) as folder:
        pass
    assert f"{folder} could not be removed; delete it" in caplog.text
    assert remove_abandoned(tmp_path, PREFIX) == []
    assert f"{folder} was left by a program that was killed, and could not be removed" in caplog.text
