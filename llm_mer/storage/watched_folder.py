"""A folder that must stay where it is while something is written into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_mer.errors import UserError


class WatchedFolder:
    """Notices that a folder was removed, moved away or replaced, also where a writer has made it anew since.

    Args:
        path: is made where it does not exist. name: what messages call it.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDONLY)  # while it is open, no other folder gets its number

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the folder it led to at first."""
        try:
            found, own = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def check(self) -> None:
        """Raises :class:`UserError` where the folder is gone."""
        if not self.is_there:
            raise self.error()

    def error(self) -> UserError:
        """What to say where the folder is gone."""
        return UserError(f"{self.name}: it was removed or moved while it was written; run the command again")

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._descriptor)


@contextmanager
def watch_folder(path: Path) -> Iterator[WatchedFolder]:
    """Watch a folder that the block writes into; where it is gone at the end, or when an error ends the block, say so.

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
