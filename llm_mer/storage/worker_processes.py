"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


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
