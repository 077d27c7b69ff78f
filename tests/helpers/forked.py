"""Work in copies of this process, which have imported everything already: the imports of a fresh one take six seconds."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path


@dataclass(frozen=True)
class Copy:
    """A copy of this process, and the files that its standard output and standard error go into."""

    process: ForkProcess
    output: Path
    errors: Path

    @classmethod
    def start(cls, work: Callable[[], int], place: Path, **environment: str) -> Copy:
        """It does ``work`` and ends with its exit code; the files are ``place`` with .out and .err behind it."""
        output, errors = (place.with_name(f"{place.name}.{kind}") for kind in ("out", "err"))

        def run() -> None:
            os.environ.update(environment)
            sys.stdout, sys.stderr = (path.open("w", buffering=1, encoding="utf-8") for path in (output, errors))
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
            sys.exit(work())

        process = get_context("fork").Process(target=run)
        process.start()
        return cls(process, output, errors)


def run_ranks(count: int, work: Callable[[], int], folder: Path, timeout: float = 200) -> list[str]:
    """Copies of this process do ``work`` as the ranks of one job, as torchrun sets them up: their standard outputs."""

    def join_and_work() -> int:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers that this process was alone
        return work()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    job |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [
        Copy.start(join_and_work, folder / f"rank-{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **job)
        for rank in range(count)
    ]
    for rank in ranks:
        rank.process.join(timeout)
    codes = [rank.process.exitcode for rank in ranks]
    for rank in ranks:
        rank.process.kill()
    assert codes == [0] * count, "\n".join(rank.errors.read_text(encoding="utf-8") for rank in ranks)[-3000:]
    return [rank.output.read_text(encoding="utf-8") for rank in ranks]
