"""Where rank 0 is refused an output, every rank is, and none waits for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mer.storage.locks import lock_output

JOB = """
import os, sys
from pathlib import Path
from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup, shutdown_process_group
from llm_mer.errors import UserError
processes = ProcessGroup.join()
try:
    with lock_outputs([Path(name) for name in sys.argv[1:]], processes):
        told = "held"
        processes.barrier()
except UserError as error:
    told = str(error)
Path(f"{sys.argv[1]}.rank-{processes.rank}").write_text(told)
shutdown_process_group()
"""


def run_job(folder: Path, *targets: Path) -> list[str]:
    """Two ranks that take these locks; what each says."""
    script = folder / "job.py"
    script.write_text(JOB)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *map(str, targets)], env=environment, cwd=root, check=True, timeout=120)
    return [Path(f"{targets[0]}.rank-{rank}").read_text() for rank in (0, 1)]


@pytest.mark.slow
def test_every_rank_learns_of_a_refusal(tmp_path: Path) -> None:
    assert run_job(tmp_path, tmp_path / "one", tmp_path / "two") == ["held", "held"]
    with lock_output(tmp_path / "two"):
        first, second = run_job(tmp_path, tmp_path / "one", tmp_path / "two")
    assert first == second
    assert f"{tmp_path / 'two'} is being written by process {os.getpid()}" in first
    assert not list(tmp_path.glob(".*"))
