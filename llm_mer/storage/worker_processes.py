"""Worker processes that end with the process that started them, and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

from llm_mer.storage.atomic_files import is_temporary


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started in this block never get Ctrl-C, which a terminal sends to all: their parent ends them.

    The signal is blocked here as long, and comes when the block ends. They inherit that, also while they are starting.
    """
    resource_tracker.ensure_running()  # which lifts the block when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ended_workers(folder: Path) -> Iterator[None]:
    """Where an exception ends the block, the worker processes that were started in it are terminated.

    What they were writing into ``folder`` (:func:`~llm_mer.storage.atomic_files.open_atomically`) is deleted.

    A pool would else wait until they have done what they are at. Its futures are not to be cancelled before: Python 3.11's
    pool tells each of them that its worker has gone, and fails with a traceback at one that is cancelled.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        ended = set(multiprocessing.active_children()) - before
        for process in ended:
            process.terminate()
        for process in ended:
            process.join()
            for path in folder.glob(f".*.{process.pid}.*.tmp"):
                if is_temporary(path.name):
                    path.unlink()
        raise


def end_with_parent() -> None:
    """In a worker process: exit as soon as the parent process has ended. Does nothing in a main process.

    A killed parent cannot notify its workers. A pool worker holds both ends of the queue it waits on, so the queue never
    closes either, and the worker would wait forever with a model in memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, name="end with parent", daemon=True).start()
