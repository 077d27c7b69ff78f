"""Places that cannot be written: one line with the place and what would be right, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Shared
from disks import read_only
from write_jobs import WRITE_JOBS, Inputs, content, nothing, refused_in_one_line

from llm_mer.cli.main import main


@pytest.fixture(scope="module")
def write_inputs(shared: Shared, trained: Path) -> Inputs:
    return Inputs(shared.make("write-inputs", lambda folder: Inputs(folder, trained).make()), trained)


NAMES = [pytest.param(name, marks=pytest.mark.slow if job.slow else ()) for name, job in WRITE_JOBS.items()]
REFUSED = ("Read-only file system", "mount point", "Device or resource busy")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_place_costs_one_line_and_nothing_else(
    name: str, write_inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job, output = WRITE_JOBS[name], tmp_path / "place" / "output"
    output.parent.mkdir()
    job.before(write_inputs, output)
    before = content(output.parent)
    for folder in (output.parent, output):
        folder.mkdir(exist_ok=True)
        with read_only(folder):
            line = refused_in_one_line(job.words(write_inputs, output), capfd)
        assert str(output) in line, line
        assert any(reason in line for reason in REFUSED), line
        assert "name " in line, line  # another path
        assert ".tmp" not in line, line
        assert ".staging-" not in line, line
        left = content(output.parent)
        kept = [path for path in left if any(part in job.keeps for part in path.split("/"))]
        assert {path: text for path, text in left.items() if path not in kept or path in before} == before
    assert main(job.words(write_inputs, output)) == 0


@pytest.mark.parametrize("name", [name for name, job in WRITE_JOBS.items() if job.before is nothing and not job.slow])
def test_a_file_where_a_folder_is_needed_is_one_line(
    name: str, write_inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused_in_one_line(WRITE_JOBS[name].words(write_inputs, tmp_path / "file" / "output"), capfd)
    assert str(tmp_path / "file") in line, line
    assert "name " in line, line
    assert content(tmp_path) == {"file": b"mine"}
