"""What the operating system refuses (a full disk, a folder that cannot be written) as one line that names the place.

Libraries report it each in their own way: Python by an error that names no file where a write fails, Rust's writers by the
number of the system's error in a text, Arrow by an error without a file name, torch by a short write. Nothing is imported
here to recognise them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_mer.errors import UserError, first_line

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)

_MAKE_ROOM = "make room on its disk, and the same command can be run again"
_NO_ACCESS = "give this user access to it, or name another path"
PLACE_ERRORS: dict[int, str] = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "no file of that size is allowed there (`ulimit -f` tells a limit); raise it, or name another disk",
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: "name a path on a disk that can be written",
    errno.ENOTDIR: "there is a file where a folder is needed; name another path",
    errno.EBUSY: "something is mounted there, or holds it; name a folder in it, or another path",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "something of that name is there; name another path",
    errno.ENAMETOOLONG: "name a shorter one",
}
"""Errors that say that a file or folder cannot be used, whatever the program does with it; each with what would be right."""

SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
TEMPORARY_NAME = re.compile(r"\.(.+)\.(?:\d+\.[0-9a-f]{8}\.tmp|staging-[0-9a-f]{12}(?:\.lock|\.old)?)")
"""Names that files and folders have before they are complete (:mod:`llm_mer.storage.atomic_files`), around the final one."""


def system_error_number(error: BaseException) -> int | None:
    """The number of the system's error that an exception reports, in whatever way; None for any other exception."""
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if isinstance(error, RuntimeError) and "inline_container" in text and "unexpected pos" in text:
        return errno.ENOSPC  # torch's writer, of fewer bytes written than were given
    found = SYSTEM_ERROR.search(text)
    return int(found[1] or found[2]) if found is not None else None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, by itself, means a full disk."""
    return system_error_number(error) in FULL_DISK_ERRORS


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the error first; what its raiser left out on purpose is left out."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        yield following
        seen.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def reason_and_remedy(error: OSError) -> str:
    """``No space left on device; make room …``."""
    advice = PLACE_ERRORS.get(error.errno or 0)
    return f"{error.strerror}; {advice}" if advice else str(error.strerror)


def final_path(path: str | Path) -> Path:
    """The path under which something that is being written will stand when it is complete."""
    parts = (found[1] if (found := TEMPORARY_NAME.fullmatch(part)) else part for part in Path(path).parts)
    return Path(*parts)


def describe_system_error(error: BaseException, place: str | Path | None = None) -> str | None:
    """``PLACE: No space left on device; make room …``; None where neither the error nor a cause says such a thing.

    Args:
        place: what was written or read, for errors that name no file themselves.
    """
    for each in error_chain(error):
        number = system_error_number(each)
        if number not in PLACE_ERRORS:
            continue
        # Of two names the second is the one that is written: of a copy, a link or a new name.
        named = (each.filename2 or each.filename) if isinstance(each, OSError) else None
        if isinstance(named, bytes):
            named = os.fsdecode(named)
        if isinstance(named, str | Path):
            return f"{final_path(named)}: {os.strerror(number)}; {PLACE_ERRORS[number]}"
        if place is not None:
            return f"{place}: {os.strerror(number)}; {PLACE_ERRORS[number]}"
        return f"a file cannot be written or read: {first_line(each)}; {PLACE_ERRORS[number]}"
    return None


@contextmanager
def naming_path(place: str | Path) -> Iterator[None]:
    """A block that writes or reads one place: what the system refuses in it is told with that place's name.

    Raises:
        UserError: such an error, in one line with what would be right. Every other error goes on as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (told := describe_system_error(error, place)) is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(place)  # for who follows the causes
        raise UserError(told) from error
