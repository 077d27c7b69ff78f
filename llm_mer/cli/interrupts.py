"""Ctrl-C: the first ends the work, those after it let it clean up, and the third ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

AT_ONCE = 3
"""The Ctrl-C that is not waited for."""
EXIT_CODE = 130
RESEND_SECONDS = 0.05
"""After which a Ctrl-C that Python ignored is sent again."""


class Interrupts:
    """Counts Ctrl-C. ``received`` is how often it came."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.received = 0
        self.others: Callable[[sys.UnraisableHookArgs], object] = sys.unraisablehook

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        self.received += 1
        if self.received == 1:
            raise KeyboardInterrupt
        if self.received < AT_ONCE:
            # What is half written is being deleted, and workers are ended; an exception in that would leave both.
            self._say("interrupted, and cleaning up; once more ends it at once")
            return
        os._exit(EXIT_CODE)

    def receive_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """``sys.unraisablehook``: a Ctrl-C that came while Python deleted an object is lost there, and is sent again."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self.others(unraisable)
            return
        self.received = 0
        # A moment later: raised here it would be lost as well.
        threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()

    def _say(self, text: str) -> None:
        with suppress(OSError):  # a terminal that has gone
            os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, f"\n{self.program}: {text}\n".encode())


@contextmanager
def handle_interrupts(program: str) -> Iterator[Interrupts]:
    """Count Ctrl-C in the block. Does nothing outside a program's main thread, or where somebody else handles it.

    After a Ctrl-C the handler stays: one more while the interpreter ends its threads would print a traceback.
    """
    counted = Interrupts(program)
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield counted
        return
    signal.signal(signal.SIGINT, counted)
    sys.unraisablehook = counted.receive_again
    try:
        yield counted
    finally:
        sys.unraisablehook = counted.others
        if not counted.received:
            signal.signal(signal.SIGINT, signal.default_int_handler)
