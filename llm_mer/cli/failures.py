"""Failures of the machine, not of this program, as one line: a place that cannot be used, memory that is exhausted.

Libraries report them each in their own way: Rust's writers by the number of the system's error in a text, Arrow by an error
without a file name, torch by errors of its own. Nothing is imported here to recognise them.
"""

from __future__ import annotations

import errno
import re

from llm_mer.errors import first_line, is_out_of_memory

PLACE_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
    }
)
"""Errors of the operating system that say that a file or folder cannot be used, whatever the program does with it."""

SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
EXHAUSTED = (
    "memory is exhausted ({told}); take smaller batches: --batch_size where questions are answered, in training "
    "--per_device_train_batch_size with more --gradient_accumulation_steps, and --per_device_eval_batch_size"
)


def explain_failure(error: BaseException) -> str | None:
    """What to say of an error that the machine is to blame for; None for any other, which is a defect.

    Its causes are looked at too: a library may wrap what the system said.
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        if is_out_of_memory(following):
            return EXHAUSTED.format(told=first_line(following)[:120])
        if (told := _place(following)) is not None:
            return told
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return None


def _place(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in PLACE_ERRORS and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    number = error.errno if isinstance(error, OSError) else None
    found = SYSTEM_ERROR.search(str(error))
    if number is None and found is not None and type(error).__module__.partition(".")[0] != "llm_mer":
        number = int(found[1] or found[2])
    return f"a file cannot be written or read: {first_line(error)}" if number in PLACE_ERRORS else None
