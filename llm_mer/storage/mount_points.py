"""Folders on which a disk is mounted, such as a container's volume: they can be written into, and not be replaced."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llm_mer.errors import UserError

MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of what this process sees mounted (proc_pid_mountinfo(5)): the fifth word is the place."""


def is_mount_point(folder: Path) -> bool:
    """Whether something is mounted here, also a folder of the same disk, which ``os.path.ismount`` does not see."""
    place = os.path.realpath(folder)
    if os.path.ismount(place):
        return True
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:  # no Linux
        return False
    return any(_unescape(line.split(b" ")[4]) == place for line in lines)


def _unescape(place: bytes) -> str:
    r"""A place as the list writes it, with ``\040`` for a space."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), place))


def refuse_mount_point(folder: Path) -> None:
    """Raises :class:`UserError` for a folder that is to be replaced when its successor is complete, and cannot be."""
    if is_mount_point(folder):
        raise UserError(f"{folder}: it is a mount point, which no folder can replace; name a folder in it")
