"""Standard output, which may be a file on a disk that is full."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from llm_mer.errors import UserError
from llm_mer.storage.system_errors import reason_and_remedy


def write_standard_output(text: str = "") -> None:
    """Write and flush.

    Raises:
        UserError: it cannot be written.
        BrokenPipeError: its reader has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError, ValueError):  # the interpreter would try once more at its end, and print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"standard output: cannot be written: {reason_and_remedy(error)}") from None
