"""Workers of a pool end with the process that started them, however it ended."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from conftest import ROOT, run_environment

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
