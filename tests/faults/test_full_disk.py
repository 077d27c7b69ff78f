"""A disk that fills up under a command: one line that names the file, nothing lost, and the same command works then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Shared, run_environment
from disks import FILLER, SmallDisk, small_disk
from write_jobs import WRITE_JOBS, Inputs, WriteJob, content, refused_in_one_line

from llm_mer.cli.main import COMMANDS, main

PAGE = 4096
NOT_TRIED = {
    *("quickstart", "push", "convert-chatglm3"),  # the others one by one; no network; tests/backbones/convert
    *("validate", "prompts list", "prompts preview", "tasks", "files", "completion"),  # standard output alone
    *("demo", "doctor"),
    "get",  # pip writes, into the environment
}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk")) as made:
        yield made


@pytest.fixture
def disk(mounted: SmallDisk) -> Iterator[SmallDisk]:
    """An empty disk."""
    yield mounted
    mounted.make_room()
    for path in mounted.folder.iterdir():
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def write_inputs(shared: Shared, trained: Path) -> Inputs:
    return Inputs(shared.make("write-inputs", lambda folder: Inputs(folder, trained).make()), trained)


def every(slow: bool) -> list[str]:
    return [name for name, job in WRITE_JOBS.items() if job.slow is slow]


def test_every_command_that_writes_is_tried_here() -> None:
    tried = {name.partition(",")[0].removesuffix(" with seeds") for name in WRITE_JOBS}
    assert tried | NOT_TRIED == set(COMMANDS)
    assert not tried & NOT_TRIED


def fill_up(
    name: str, job: WriteJob, rooms: int, inputs: Inputs, disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    """Call a command on a disk with less and less room than it needs, and then with enough."""
    places = [disk.folder / f"{name.replace(' ', '-')}-{number}" for number in range(rooms + 1)]
    for place in places:
        place.mkdir()
        job.before(inputs, place / "output")
    free = disk.free
    assert main(job.words(inputs, places[0] / "output")) == 0
    needed, whole = free - disk.free, content(places[0])
    for number, place in enumerate(places[1:]):
        output, before = place / "output", content(place)
        disk.leave(needed * number // rooms // PAGE * PAGE)
        line = refused_in_one_line(job.words(inputs, output), capfd)
        assert str(place) in line or "output_dir" in line, line
        assert "make room" in line or "when there is room" in line, line
        left = content(place)
        assert {path: left.get(path) for path in before} == before
        new = [path for path in left if path not in before and not any(part in job.keeps for part in path.split("/"))]
        assert new == [], line
        disk.make_room()
        assert main(job.words(inputs, output)) == 0, line
        assert content(place).keys() == whole.keys()


@pytest.mark.parametrize("name", every(slow=False))
def test_a_full_disk_costs_one_line_and_nothing_else(
    name: str, write_inputs: Inputs, disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    fill_up(name, WRITE_JOBS[name], 2, write_inputs, disk, capfd)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WRITE_JOBS)
def test_a_disk_that_fills_up_at_any_point_costs_one_line_and_nothing_else(
    name: str, write_inputs: Inputs, disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    fill_up(name, WRITE_JOBS[name], 6, write_inputs, disk, capfd)


@pytest.mark.parametrize("name", ["prepare", "evaluate", "calibrate"])
def test_what_was_finished_before_stays_as_it_was_to_the_byte(
    name: str, write_inputs: Inputs, disk: SmallDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    job, place = WRITE_JOBS[name], disk.folder / f"finished-{name}"
    job.before(write_inputs, place / "output")
    place.mkdir(exist_ok=True)
    words = job.words(write_inputs, place / "output")
    assert main(words) == 0
    finished = content(place)
    for room in (PAGE, 3 * PAGE):
        disk.leave(room)
        if main(words) == 0:  # the new one fits in
            break
        left = content(place)
        assert {path: left.get(path) for path in finished} == finished
    disk.make_room()
    assert main(words) == 0
    assert content(place).keys() == finished.keys()


def test_standard_output_on_a_full_disk_is_one_line_and_no_traceback_at_the_interpreters_end() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llm_mer", "tasks"],
            cwd=ROOT,
            env=run_environment(PYTHONPATH=str(ROOT)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("llm-mer tasks: standard output: cannot be written: No space left on device; make room")
    assert done.stderr.count("\n") == 1


def test_the_disk_of_these_tests_fills_up(disk: SmallDisk) -> None:
    disk.leave(2 * PAGE)
    with pytest.raises(OSError, match="No space left"), (disk.folder / "x").open("wb") as stream:
        stream.write(bytes(4 * PAGE))
    (disk.folder / "x").unlink()
    disk.make_room()
    assert not (disk.folder / FILLER).exists()
