"""Disks of a test's own: one that fills up and one that cannot be written, as the kernel makes them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FILLER = ".filler"


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory that is filled at will."""

    folder: Path

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_bsize

    def leave(self, size: int) -> None:
        """Fill it until so many bytes are free, whole pages."""
        self.make_room()
        with (self.folder / FILLER).open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(self.free - size, 1))

    def make_room(self) -> None:
        """Take away what :meth:`leave` wrote."""
        (self.folder / FILLER).unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: int = 64 << 20) -> Iterator[SmallDisk]:
    """A disk of ``size`` bytes in an empty folder; the test is skipped where nothing can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        _unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside the block nothing in a folder can be written, not even by root."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        _unmount(folder)
