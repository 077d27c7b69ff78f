"""Files and folders that appear under their name only when they are complete.

Content is written beside its target under a hidden name, on the same file system, and renamed at the end. A process that is
killed leaves its hidden folder behind; the next process that writes the same target deletes it, recognising it by a lock
file that the operating system has released. Nothing else in the parent folder is ever touched.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from llm_mer.errors import UserError
from llm_mer.storage.json_text import dump_json
from llm_mer.storage.mount_points import refuse_mount_point
from llm_mer.storage.system_errors import TEMPORARY_NAME, naming_path


@contextmanager
def open_atomically(path: Path, mode: str = "w", fsync: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that replaces ``path`` when the block ends without an exception.

    Args:
        mode: ``w`` (UTF-8 text) or ``wb``. fsync: whether to flush the content to disk before the rename.

    Raises:
        UserError: the disk is full, read-only or otherwise refuses; ``path`` is then what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    with naming_path(path):
        try:
            with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                if fsync:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):  # where it cannot be deleted either, the first error has said why
                temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` with this text, flushed to disk before the rename."""
    with open_atomically(path, fsync=True) as stream:
        stream.write(text)


def write_json_atomically(path: Path, value: Any, indent: int = 1) -> None:
    """Replace the content of ``path`` with this value as JSON; numbers that are not finite become null."""
    write_text_atomically(path, dump_json(value, indent))


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, which makes a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Create a folder beside ``target`` that becomes ``target`` if the block succeeds, and is deleted otherwise.

    Args:
        target: must not exist, or must be an empty folder. needed_bytes: free space required before anything is written.

    Raises:
        UserError: the target is not empty, or the disk is full, read-only or fails otherwise.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; name a folder that is new or empty")
    with naming_path(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed_bytes > free:
            raise UserError(
                f"{target}: needs {_readable(needed_bytes)}, but {_readable(free)} are free on that disk; make room there, "
                "or name another path"
            )
        with staging_folder(target) as staging:
            yield staging
            staging.rename(target)


def _readable(size: int) -> str:
    """A number of bytes as ``1.25 GB``."""
    unit = next((unit for unit in ("GB", "MB", "kB") if size >= _UNITS[unit]), "bytes")
    return f"{size / _UNITS[unit]:.2f} {unit}" if unit in _UNITS else f"{size} bytes"


_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


@contextmanager
def replaced_folder(target: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """Create a folder beside ``target`` that replaces ``target`` when the block ends without an exception.

    Other files in ``target`` are kept: they are linked (or copied, where the file system has no links) into the new folder
    first. If the process is killed, either the old folder or the new one remains, complete.

    Args:
        is_ours: whether a name directly in ``target`` is one that this program writes, and may replace.

    Raises:
        UserError: the disk is full, read-only or otherwise refuses, or a file of the user's has the name of a new one.
    """
    try:
        with naming_path(target), staging_folder(target) as staging:
            yield staging
            install_folder(staging, target, is_ours)
    except FileNotFoundError as error:
        if f".{target.name}.staging-" in str(error):
            raise UserError(
                f"{target}: it was removed or moved while it was being written; run the command again"
            ) from error
        raise


def install_folder(staging: Path, target: Path, is_ours: Callable[[str], bool]) -> None:
    """Rename ``staging`` to ``target``: files that this program wrote are replaced, all others are kept by linking them.

    Where both hold a folder of the same name (a tracker's ``runs``), the new one is completed from the old one.

    Raises:
        UserError: a new file has the name of a file that this program did not write.
    """
    if not target.exists():
        staging.rename(target)
        return
    for entry in target.iterdir():
        if not is_ours(entry.name):
            _link_existing(entry, staging)
    old = backup_folder(staging)
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _link_existing(entry: Path, folder: Path) -> None:
    """Link a file or folder into ``folder`` without replacing anything that is already there."""
    copy = folder / entry.name
    if not os.path.lexists(copy):
        _link(entry, copy)
    elif all(path.is_dir() and not path.is_symlink() for path in (entry, copy)):
        for inner in entry.iterdir():
            _link_existing(inner, copy)
    else:
        raise UserError(f"{entry} was not written by this program, and a new file has its name; move it away")


def _link(source: Path, copy: Path) -> None:
    """Hard-link a file, or every file of a folder; copy where the file system has no links."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, copy, symlinks=True, copy_function=link)
    else:
        link(str(source), str(copy))


def backup_folder(staging: Path) -> Path:
    """Where :func:`install_folder` moves the old target in the meantime."""
    return staging.with_name(f"{staging.name}.old")


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Create an empty hidden folder beside ``target``, deleted when the block ends unless it was renamed.

    Staging folders that killed processes left for the same target are deleted first.
    """
    from filelock import FileLock

    refuse_mount_point(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_staging(target)
    staging = target.with_name(f".{target.name}.staging-{uuid.uuid4().hex[:12]}")
    # The operating system releases the lock when the process is killed, which marks the folder as abandoned.
    lock = FileLock(f"{staging}.lock")
    with lock:
        try:
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def remove_abandoned_staging(target: Path) -> None:
    """Delete staging folders for ``target`` whose process has ended; an old ``target`` that was moved aside is restored."""
    from filelock import FileLock, Timeout

    own = re.compile(rf"\.{re.escape(target.name)}\.staging-[0-9a-f]{{12}}\.lock")
    for path in [path for path in target.parent.iterdir() if own.fullmatch(path.name)]:
        with suppress(Timeout, PermissionError), FileLock(path, timeout=0):
            staging = path.with_suffix("")
            old = backup_folder(staging)
            if old.is_dir() and not target.exists():
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(staging, ignore_errors=True)
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a name is one that this module gives to files and folders before they are complete."""
    return TEMPORARY_NAME.fullmatch(name) is not None
