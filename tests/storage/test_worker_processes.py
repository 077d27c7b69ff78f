"""Workers of a pool end with the process that started them, however it ended."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, run_environment

from llm_mer.storage.worker_processes import ended_workers, without_interrupts

PROGRAM = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from llm_mer.storage.worker_processes import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), INITIALIZER) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(("initializer", "ends"), [("end_with_parent", True), ("None", False)])
def test_a_worker_ends_when_its_parent_is_killed_and_without_this_it_would_not(
    initializer: str, ends: bool, tmp_path: object
) -> None:
    script = f"{tmp_path}/pool.py"
    with open(script, "w", encoding="utf-8") as stream:
        stream.write(PROGRAM.replace("INITIALIZER", initializer))
    environment = run_environment(PYTHONPATH=str(ROOT))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        worker.wait(timeout=20 if ends else 2)
    except psutil.TimeoutExpired:
        assert not ends
    else:
        assert ends
    finally:
        if worker.is_running():
            worker.kill()


def test_a_process_that_is_started_without_interrupts_never_gets_ctrl_c_and_this_one_does_again() -> None:
    asks = [sys.executable, "-c", "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"]
    with without_interrupts():
        inside = subprocess.run(asks, capture_output=True, text=True, check=True)
    after = subprocess.run(asks, capture_output=True, text=True, check=True)
    assert (inside.stdout, after.stdout) == ("True\n", "False\n")


def begin_to_write(process: Any, folder: Path) -> None:
    process.start()
    for number in (process.pid, 1):
        (folder / f".a.npz.{number}.0123abcd.tmp").write_text("half")


def interrupted_after(work: Callable[[], None]) -> None:
    work()
    raise KeyboardInterrupt


def test_an_exception_ends_the_workers_of_its_block_and_no_others(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    before, inside = (context.Process(target=time.sleep, args=(60,)) for _ in range(2))
    before.start()
    try:
        with pytest.raises(KeyboardInterrupt), ended_workers(tmp_path):
            interrupted_after(lambda: begin_to_write(inside, tmp_path))
        inside.join(30)
        assert inside.exitcode == -signal.SIGTERM
        assert before.is_alive()
        assert [path.name for path in tmp_path.iterdir()] == [".a.npz.1.0123abcd.tmp"]  # of another process
    finally:
        before.kill()
        before.join()
