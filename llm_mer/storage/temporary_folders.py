"""Temporary folders that are removed even after a kill -9: by the next program that makes one of the same prefix.

Such a folder holds the file :data:`OWNER_FILE`, on which its program keeps the operating system's lock (``flock``). A folder
whose lock can be taken has nobody left who works in it. What lacks the file, is another user's or is a link stays.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

OWNER_FILE = ".llm-mer-owner.lock"
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that end a program, and would leave a folder that is being removed half there."""


@contextmanager
def temporary_folder(prefix: str, parent: str | None = None) -> Iterator[Path]:
    """A new folder of this user alone (mode 0700), removed with all it holds; those that killed programs left go first.

    Args:
        prefix: of its name. parent: where it lies, the system's temporary folder (``TMPDIR``) when None.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(os.path.realpath(parent or tempfile.gettempdir()))
    remove_abandoned(place, prefix)
    folder, owner = _make(place, prefix)
    try:
        yield folder
    finally:
        with _ignoring_signals():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)
        if folder.exists():
            logger.warning("%s could not be removed; delete it", folder)


@contextmanager
def _ignoring_signals() -> Iterator[None]:
    """Ignore the signals that end a program; nothing outside the main thread, where none arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove_abandoned(place: Path, prefix: str) -> list[Path]:
    """Remove the folders of this prefix whose program is gone, and return them; each is said."""
    removed = []
    for folder in sorted(place.glob(f"{prefix}*")):
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
            continue
        owner = _lock_if_free(folder / OWNER_FILE)
        if owner is None:
            continue
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(owner)
        if folder.exists():
            logger.warning("%s was left by a program that was killed, and could not be removed; delete it", folder)
        else:
            logger.info("%s was left by a program that was killed; removed", folder)
            removed.append(folder)
    return removed


def _make(place: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock until it is closed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))  # mode 0700, whatever the umask
        path = folder / OWNER_FILE
        owner = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks, on which no other program can take it either
            fcntl.flock(owner, fcntl.LOCK_EX)
        # Another program may have taken the folder for an abandoned one in the moment before it was locked.
        if path.exists():
            return folder, owner
        os.close(owner)


def _lock_if_free(path: Path) -> int | None:
    """A descriptor that holds the file's lock; None where there is no such file, another holds it, or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
