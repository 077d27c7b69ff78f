"""A user's mistake under a launcher."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_environment


@pytest.mark.slow
def test_under_a_quiet_accelerate_launch_a_mistake_is_one_line(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, "finetune.py", "--data", str(tmp_path / "none"), "--backbone", "tiny:llama", "--use_cpu", "true"]
    found = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=run_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    line = f"finetune.py: {tmp_path / 'none'}: no store.json here; a store is written by `llm-mer extract`\n"
    assert (found.returncode, found.stderr) == (1, line)
