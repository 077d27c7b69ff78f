"""Files and folders that appear under their name only when they are complete.

What is written stands beside its target under a hidden name, on the same file system, and is renamed at the end. A process
that is killed leaves its hidden folder behind; the next one that writes the same target deletes it, recognised by a lock
file that the operating system released. Nothing else in the folder around a target is ever touched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from llm_mer.errors import UserError
from llm_mer.storage.json_text import dump_json

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_atomically(path: Path, mode: str = "w", fsync: bool = False) -> Iterator[IO[Any]]:
    """A stream into a temporary file beside ``path`` that replaces ``path`` when the block ends without an exception.

    Args:
        mode: ``w`` (UTF-8 text) or ``wb``. fsync: whether the content is on the disk before the file gets its name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            if fsync:
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` by this text, on the disk before the file gets its name."""
    with open_atomically(path, fsync=True) as stream:
        stream.write(text)


def write_json_atomically(path: Path, value: Any, indent: int = 1) -> None:
    """Replace the content of ``path`` by this value as JSON; a number that is not finite is null."""
    write_text_atomically(path, dump_json(value, indent))


def fsync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: a rename is durable only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder beside ``target`` that becomes ``target`` when the block ends without an exception, else is deleted.

    Args:
        target: must not exist, or be an empty folder. needed_bytes: free space that is required before anything is written.

    Raises:
        UserError: the target holds something, or the disk is full, read-only or otherwise refuses.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; name a folder that is new or empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if needed_bytes > free:
            raise UserError(f"{target}: needs {needed_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free on that disk")
        with staging_folder(target) as staging:
            yield staging
            staging.rename(target)
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a failed write
        raise UserError(f"{target} cannot be written: {error}") from error


@contextmanager
def replaced_folder(target: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """A folder beside ``target`` that takes the place of ``target`` when the block ends without an exception.

    What else lies in ``target`` stays there: it is linked (or copied, where the file system has no links) into the new
    folder first. A process that is killed leaves the old folder or the new one, complete.

    Args:
        is_ours: whether a name directly in ``target`` is one that the writer of such folders makes, and may replace.

    Raises:
        UserError: the disk is full, or a foreign file has the name of a new one.
    """
    try:
        with staging_folder(target) as staging:
            yield staging
            exchange_folders(staging, target, is_ours)
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise UserError(f"{target}: no space left on its disk; make room and run the command again") from error
        if isinstance(error, FileNotFoundError) and f".{target.name}.staging-" in str(error):
            raise UserError(f"{target}: it was removed or moved while it was written; run the command again") from error
        raise


def exchange_folders(staging: Path, target: Path, is_ours: Callable[[str], bool]) -> None:
    """Rename ``staging`` to ``target``, whose own files it replaces and whose others it takes over by links.

    Of two folders of one name (a tracker's ``runs``) the new one takes over what only the old one has.

    Raises:
        UserError: a new file has the name of one that is not ours.
    """
    if not target.exists():
        staging.rename(target)
        return
    for entry in target.iterdir():
        if not is_ours(entry.name):
            _take_over(entry, staging)
    old = old_folder(staging)
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _take_over(entry: Path, folder: Path) -> None:
    """Link a file or folder into a folder, in which all that is there stays as it is."""
    copy = folder / entry.name
    if not os.path.lexists(copy):
        _link(entry, copy)
    elif all(path.is_dir() and not path.is_symlink() for path in (entry, copy)):
        for inner in entry.iterdir():
            _take_over(inner, copy)
    else:
        raise UserError(f"{entry} was not written by this program, and a new file has its name; move it away")


def _link(source: Path, copy: Path) -> None:
    """Give a file, or every file of a folder, a second name; copy it where the file system has no links."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, copy, symlinks=True, copy_function=link)
    else:
        link(str(source), str(copy))


def old_folder(staging: Path) -> Path:
    """Where :func:`exchange_folders` sets the old target aside."""
    return staging.with_name(f"{staging.name}.old")


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``target``, deleted when the block ends unless it was renamed.

    Those that killed processes left for the same target are deleted first.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_staging(target)
    staging = target.with_name(f".{target.name}.staging-{uuid.uuid4().hex[:12]}")
    # Held until the end. The operating system releases it when the process is killed, and then the folder is abandoned.
    lock = FileLock(f"{staging}.lock")
    with lock:
        try:
            staging.mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def remove_abandoned_staging(target: Path) -> None:
    """Delete the staging folders for ``target`` whose process has ended; an old ``target`` set aside by one comes back."""
    from filelock import FileLock, Timeout

    own = re.compile(rf"\.{re.escape(target.name)}\.staging-[0-9a-f]{{12}}\.lock")
    for path in [path for path in target.parent.iterdir() if own.fullmatch(path.name)]:
        with suppress(Timeout, PermissionError), FileLock(path, timeout=0):
            staging = path.with_suffix("")
            old = old_folder(staging)
            if old.is_dir() and not target.exists():
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(staging, ignore_errors=True)
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a name is one of those that files and folders have here before they are whole."""
    return re.fullmatch(r"\..+\.(\d+\.[0-9a-f]{8}\.tmp|staging-[0-9a-f]{12}(\.lock|\.old)?)", name) is not None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk: Python's by its number, safetensors' by its text, torch's by a short write."""
    if isinstance(error, OSError):
        return error.errno in FULL_DISK_ERRORS
    message = str(error)
    short = isinstance(error, RuntimeError) and "inline_container" in message and "unexpected pos" in message
    return short or "os error 28" in message
