"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a worker process: end it as soon as its parent has ended, however that happened. Nothing in a main process.

    A killed parent cannot tell its workers. A worker of a pool holds both ends of the queue it waits on, so the queue never
    closes for it either, and it would wait for ever, with a model in its memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
