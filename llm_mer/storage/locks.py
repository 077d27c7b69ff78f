"""One writer at a time: a lock on a file or folder that is being written, which says who writes it, and since when.

The lock is the operating system's (``flock``), so it ends with the process that holds it, however that ends. A hidden file
``.NAME.lock`` beside ``NAME`` carries it and the owner as text, and is deleted at the end; one that a killed process left is
taken over by the next writer of the same place.
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

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger(__name__)

NO_LOCKS_HERE = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""Errors of a file system that has no locks."""
WAIT_SECONDS = 0.3
"""For a lock whose owner is about to delete its file: the next attempt finds a new one."""


@dataclass(frozen=True)
class LockOwner:
    """The process that writes a place. ``since``: UTC to the second, ISO 8601."""

    process: int
    host: str
    since: str

    @classmethod
    def current(cls) -> LockOwner:
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> LockOwner | None:
        """The owner noted in a lock file; None where there is none, or where it is just being written."""
        try:
            entry = parse_json(path.read_text(encoding="utf-8"), str(path))
            return cls(int(entry["process"]), str(entry["host"]), str(entry["since"]))
        except (UserError, OSError, ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


def lock_path(target: Path) -> Path:
    """Where the lock of a file or folder lies: beside it, or in it where it is a folder whose parent cannot be written."""
    place = Path(os.path.realpath(target))  # one lock by whatever name the place is called
    inside = not place.name or (place.is_dir() and not os.access(place.parent, os.W_OK))
    return place / ".output.lock" if inside else place.with_name(f".{place.name}.lock")


def is_lock_file(name: str) -> bool:
    """Whether a file of this name is a lock of :func:`lock_output`; a kill may leave it."""
    return re.fullmatch(r"\..+\.lock", name) is not None


@contextmanager
def lock_output(target: Path | str) -> Iterator[None]:
    """Hold the lock of a file or folder that this process writes.

    The same thread may hold it several times over. On a file system without locks a warning says so, and nothing is held.
    Between machines it holds where their common file system hands ``flock`` on to the server (NFS does, from Linux 2.6.12).

    Args:
        target: need not exist; its parent folder is made.

    Raises:
        UserError: another process writes there, in one line with its number, host and start; or the place is read-only.
    """
    path = lock_path(Path(target))
    lock = _acquire(path, Path(target))
    if lock is None:
        yield
        return
    try:
        if lock.lock_counter == 1:
            _note_owner(path, Path(target))
        yield
    finally:
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)  # still held: who opened the file before finds it without a name, and tries anew
        lock.release()


def _note_owner(path: Path, target: Path) -> None:
    try:
        path.write_text(json.dumps(asdict(LockOwner.current())) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be locked for writing: {path}: {error.strerror}") from error


def _acquire(path: Path, target: Path) -> FileLock | None:
    """The held lock; None where the file system has none."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
        with suppress(Timeout):
            lock.acquire(timeout=WAIT_SECONDS, poll_interval=WAIT_SECONDS / 10)
            return lock
    except OSError as error:
        if error.errno in NO_LOCKS_HERE:
            logger.warning("%s: its file system has no locks, so a second process that writes there is not noticed", target)
            return None
        raise UserError(f"{target}: cannot be locked for writing: {path}: {error.strerror}") from error
    owner = LockOwner.read(path)
    who = "another process" if owner is None else str(owner)
    raise UserError(f"{target} is being written by {who}; wait until that has ended, or name another place")
