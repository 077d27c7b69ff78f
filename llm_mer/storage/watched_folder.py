"""Detecting that an output folder was moved or deleted while it was being written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_mer.errors import UserError


class WatchedFolder:
    """Notices that a folder was removed, moved or replaced, even if a writer has created it again since.

    Args:
        path: created if it does not exist. name: its name in messages.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDONLY)  # keeps the inode number from being reused

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the original folder."""
        try:
            current, original = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (current.st_dev, current.st_ino) == (original.st_dev, original.st_ino)

    def check(self) -> None:
        """Raises :class:`UserError` if the folder is gone."""
        if not self.is_there:
            raise self.error()

    def error(self) -> UserError:
        """The error to raise if the folder is gone."""
        return UserError(f"{self.name}: it was removed or moved while it was being written; run the command again")

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)


@contextmanager
def watch_folder(path: Path) -> Iterator[WatchedFolder]:
    """Watch a folder that the block writes into; report if it is gone at the end, or when an error ends the block.

    Raises:
        UserError: the folder was removed or moved.
    """
    watched = WatchedFolder(path, str(path))
    try:
        yield watched
        watched.check()
    except Exception as error:
        if not watched.is_there and not isinstance(error, UserError):
            raise watched.error() from error
        raise
    finally:
        watched.close()
