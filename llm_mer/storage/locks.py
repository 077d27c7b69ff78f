"""Output locks: one writer at a time for a file or folder, with a record of who is writing it and since when.

The lock is the operating system's (``flock``), so it is released whenever the process that holds it ends. A hidden file
``.NAME.lock`` beside ``NAME`` carries the lock and names its owner, and is deleted at the end; a lock file left by a killed
process is reused by the next writer.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llm_mer.errors import UserError
from llm_mer.storage.json_text import parse_json
from llm_mer.storage.system_errors import reason_and_remedy

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger(__name__)

LOCKS_UNSUPPORTED_ERRORS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""Errors of a file system that does not support locks."""
ACQUIRE_TIMEOUT_SECONDS = 0.3
"""Covers an owner that is just about to delete its lock file; the next attempt creates a new one."""


@dataclass(frozen=True)
class LockOwner:
    """The process that is writing an output. ``since``: UTC to the second, ISO 8601."""

    process: int
    host: str
    since: str

    @classmethod
    def current(cls) -> LockOwner:
        """This process, starting now."""
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> LockOwner | None:
        """The owner recorded in a lock file; None if there is none, or if it is just being written."""
        try:
            entry = parse_json(path.read_text(encoding="utf-8"), str(path))
            return cls(int(entry["process"]), str(entry["host"]), str(entry["since"]))
        except (UserError, OSError, ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


def check_output_path(target: Path | str) -> None:
    """Refuse a path to write whose ``~`` or ``$NAME`` no shell has replaced, and one without a name.

    A shell does not replace ``~`` behind ``=``, and nobody does in a YAML file: the output would be a folder named ``~``.

    Raises:
        UserError: naming the path.
    """
    first = Path(target).parts[0] if Path(target).parts else ""
    unreplaced = re.match(r"~|\$(?:\w|\{\w+\})", first)
    if unreplaced and (first.startswith("~") or not Path(first).exists()):
        raise UserError(f"{target}: only a shell replaces {first!r}, and here none did; write the path out")
    if Path(target).name in ("", ".."):
        raise UserError(f"{str(target)!r} has no name of its own; write the path of a folder out: {os.path.abspath(target)}")


def lock_path(target: Path) -> Path:
    """Path of the lock file: beside the target, or inside a folder whose parent is not writable."""
    resolved = Path(os.path.realpath(target))  # one lock whatever name the target is given by
    inside = not resolved.name or (resolved.is_dir() and not os.access(resolved.parent, os.W_OK))
    return resolved / ".output.lock" if inside else resolved.with_name(f".{resolved.name}.lock")


def is_lock_file(name: str) -> bool:
    """Whether this is the name of a lock file of :func:`lock_output`; a killed process may leave one."""
    return re.fullmatch(r"\..+\.lock", name) is not None


@contextmanager
def lock_output(target: Path | str) -> Iterator[None]:
    """Hold the lock of a file or folder that this process writes.

    Reentrant within a thread. On a file system without locks a warning is logged and nothing is locked. Between machines it
    works if their shared file system forwards ``flock`` to the server (NFS does, from Linux 2.6.12).

    Args:
        target: need not exist; its parent folder is created.

    Raises:
        UserError: another process is writing there (its id, host and start are named), or the target is read-only.
    """
    check_output_path(target)
    path = lock_path(Path(target))
    lock = _acquire(path, Path(target))
    if lock is None:
        yield
        return
    try:
        if lock.lock_counter == 1:
            _write_owner(path, Path(target))
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # while held: a process that had opened the file finds it unlinked, and retries
        lock.release()


def _write_owner(path: Path, target: Path) -> None:
    try:
        path.write_text(json.dumps(asdict(LockOwner.current())) + "\n", encoding="utf-8")
    except OSError as error:
        raise _refused(target, path, error) from error


def _refused(target: Path, path: Path, error: OSError) -> UserError:
    return UserError(f"{target}: cannot be locked for writing: {path}: {reason_and_remedy(error)}")


def _acquire(path: Path, target: Path) -> FileLock | None:
    """Acquire the lock; None if the file system does not support locks."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
        with suppress(Timeout):
            lock.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS, poll_interval=ACQUIRE_TIMEOUT_SECONDS / 10)
            return lock
    except OSError as error:
        if error.errno in LOCKS_UNSUPPORTED_ERRORS:
            logger.warning("%s: its file system has no locks, so a second process that writes there goes unnoticed", target)
            return None
        raise _refused(target, path, error) from error
    owner = LockOwner.read(path)
    writer = "another process" if owner is None else str(owner)
    raise UserError(f"{target} is being written by {writer}; wait until it has ended, or name another output")
