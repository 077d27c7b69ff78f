"""Paths in a run's manifest, written so that they are found again and name no folder above what the run shares."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSOLUTE_PATH = re.compile(r"(?P<before>(?:--[\w-]+=)?(?:\w+:)?)(?P<path>[/~].*)", flags=re.DOTALL)
"""An absolute path, also after ``FORMAT:`` and ``--option=``."""
RUN_FOLDER = "{run}"
"""Stands for the folder of the manifest at the beginning of a path."""
WRITTEN = re.compile(r"(?P<before>(?:--[\w-]+=)?(?:\w+:)?)(?P<path>\{run\}(?:/.*)?)", flags=re.DOTALL)
MIN_COMMON_PARTS = 2
"""Folders that two paths must have in common, such as ``/home/NAME``, for one to be told from the other."""


def make_paths_portable(value: Any, folder: Path) -> Any:
    """Absolute paths as they lie from the run's folder (``{run}/../data``); of one far from it the last part is kept."""
    run = folder.resolve()

    def write(path: str) -> str:
        given = Path(path).expanduser()
        resolved = Path(os.path.abspath(given))
        common = Path(os.path.commonpath([run, resolved]))
        below = resolved.relative_to(common).parts
        if len(common.parts) <= MIN_COMMON_PARTS or _user_name() in below:
            return given.name
        return "/".join([RUN_FOLDER, *[".."] * (len(run.parts) - len(common.parts)), *below])

    return _map_paths(value, ABSOLUTE_PATH, write)


def resolve_portable_paths(value: Any, folder: Path) -> Any:
    """Paths that :func:`make_paths_portable` wrote as they lie now, ``folder`` being the run's."""
    run = folder.resolve()
    return _map_paths(value, WRITTEN, lambda path: os.path.normpath(f"{run}{path.removeprefix(RUN_FOLDER)}"))


def _map_paths(value: Any, pattern: re.Pattern[str], change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_map_paths(entry, pattern, change) for entry in value]
    if isinstance(value, dict):
        return {name: _map_paths(entry, pattern, change) for name, entry in value.items()}
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else found["before"] + change(found["path"])


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return ""
