"""Another process that holds an output's lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import os, sys, time
from pathlib import Path
from llm_mer.storage.locks import lock_output
with lock_output(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(target: Path, *words: str) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@contextmanager
def held_by_another(target: Path) -> Iterator[int]:
    """The lock is held inside the block, by the process of this id."""
    process = hold(target)
    try:
        yield process.pid
    finally:
        process.communicate("")
