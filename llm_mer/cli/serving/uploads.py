"""A private folder for what is uploaded: nobody else's to read, bounded, and gone when the program ends.

What a demo left that was killed (kill -9) goes when the next one of the same user starts.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llm_mer.errors import UserError
from llm_mer.storage.temporary_folders import OWNER_FILE, temporary_folder

GRADIO_FOLDER = "GRADIO_TEMP_DIR"
"""Gradio puts uploads into the folder that this variable names."""
PREFIX = "llm-mer-demo-"
SWEEP_EVERY = 30.0
"""Seconds between two looks for files that are too old."""


@contextmanager
def private_folder(keep_seconds: float) -> Iterator[Path]:
    """A new folder that only this user can open, for Gradio's uploads; removed with all it holds.

    A file is removed ``keep_seconds`` after it was written. Below the folder that ``GRADIO_TEMP_DIR`` names, if any.

    Raises:
        UserError: there is no place for it.
    """
    before = os.environ.get(GRADIO_FOLDER)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(PREFIX, before or None))
        except OSError as error:
            named = f"{GRADIO_FOLDER}={before}" if before else "the temporary folder (TMPDIR)"
            raise UserError(f"{named}: no folder for uploads can be made there: {error.strerror}") from None
        ended = threading.Event()
        sweeper = threading.Thread(target=_sweep, args=(folder, keep_seconds, ended), daemon=True)
        os.environ[GRADIO_FOLDER] = str(folder)
        try:
            sweeper.start()
            yield folder
        finally:
            ended.set()
            if before is None:
                del os.environ[GRADIO_FOLDER]
            else:
                os.environ[GRADIO_FOLDER] = before


@contextmanager
def clean_up_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end the program as an exception does, with exit code 128 + their number.

    One that is ignored already, as ``nohup`` does with SIGHUP, stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    def hang_up(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)  # which a server may have taken over, to end its connections first

    handlers = {signal.SIGTERM: end, signal.SIGHUP: hang_up}
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sweep(folder: Path, keep_seconds: float, ended: threading.Event) -> None:
    while not ended.wait(min(SWEEP_EVERY, keep_seconds)):
        remove_older(folder, keep_seconds)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove files that were last written more than ``seconds`` ago, those of broken uploads too."""
    oldest = time.time() - seconds
    for path in _files(folder):
        with suppress(FileNotFoundError):  # removed meanwhile
            if path.stat().st_mtime < oldest:
                path.unlink()


def bytes_held(folder: Path) -> int:
    """Bytes of all files in the folder."""
    total = 0
    for path in _files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _files(folder: Path) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names if name != OWNER_FILE]
