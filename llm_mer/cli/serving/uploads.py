"""A private folder for what is uploaded: nobody else's to read, bounded, and gone when the program ends."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llm_mer.errors import UserError

logger = logging.getLogger(__name__)

GRADIO_FOLDER = "GRADIO_TEMP_DIR"
"""Gradio puts uploads into the folder that this variable names."""
PREFIX = "llm-mer-demo-"
SWEEP_EVERY = 30.0
"""Seconds between two looks for files that are too old."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a program without its clean-up unless they are handled; Ctrl-C is an exception in Python."""


@contextmanager
def private_folder(keep_seconds: float) -> Iterator[Path]:
    """A new folder that only this user can open, for Gradio's uploads; removed with all it holds.

    A file is removed ``keep_seconds`` after it was written. Below the folder that ``GRADIO_TEMP_DIR`` names, if any.

    Raises:
        UserError: there is no place for it.
    """
    before = os.environ.get(GRADIO_FOLDER)
    try:
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=PREFIX, dir=before or None)))  # mode 0700, whatever the umask
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
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder though signals come meanwhile; what cannot be removed is said."""
    with _ignoring_signals():
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning("%s holds uploads and could not be removed; delete it", folder)


@contextmanager
def _ignoring_signals() -> Iterator[None]:
    """Ignore the signals that end a program; nothing outside the main thread, where none arrives."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (*ENDING, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]
