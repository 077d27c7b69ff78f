"""Files and folders are complete or absent, and nothing of anyone else's goes, also when a process is killed."""

import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import (
    install_folder,
    new_folder,
    open_atomically,
    replaced_folder,
    write_json_atomically,
    write_text_atomically,
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def interrupted() -> None:
        with open_atomically(path) as stream:
            stream.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with open_atomically(path, "wb") as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    write_json_atomically(path, {"word": "é"})
    assert path.read_text(encoding="utf-8") == '{\n "word": "é"\n}'
    assert listing(tmp_path) == ["a.txt"]


def test_a_new_folder_appears_when_complete_and_never_over_something(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "a") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "deep" / "a").exists()
    assert listing(tmp_path / "deep") == ["a"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "deep" / "a"):
        pass
    with pytest.raises(UserError, match=r"deep/b: No space left on device; make room"), new_folder(tmp_path / "deep" / "b"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="mine"), new_folder(tmp_path / "deep" / "b"):
        raise ValueError("mine")
    assert listing(tmp_path / "deep") == ["a"]


def test_a_replaced_folder_keeps_foreign_files_folders_and_links(tmp_path: Path) -> None:
    target = tmp_path / "made"
    (target / "thesis" / "deep").mkdir(parents=True)
    (target / "thesis" / "deep" / "chapter.txt").write_text("years of work")
    (target / "notes.txt").write_text("mine")
    (target / "away").symlink_to("nowhere")
    for name in ("ours.a", "ours.b"):
        (target / name).write_text("old")
    with replaced_folder(target, lambda name: name.startswith("ours.")) as staging:
        (staging / "ours.a").write_text("new")
    assert listing(target) == ["away", "notes.txt", "ours.a", "thesis"]
    assert (target / "ours.a").read_text() == "new"
    assert (target / "thesis" / "deep" / "chapter.txt").read_text() == "years of work"
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "away").readlink() == Path("nowhere")
    assert listing(tmp_path) == ["made"]


def test_a_new_file_never_takes_the_place_of_a_foreign_one(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt was not written by this program"):
        with replaced_folder(target, lambda name: name.startswith("ours.")) as staging:
            (staging / "notes.txt").write_text("new")
    assert (target / "notes.txt").read_text() == "mine"
    assert listing(tmp_path) == ["made"]


def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path: Path) -> None:
    told = "made: No space left on device; make room"
    with pytest.raises(UserError, match=told), replaced_folder(tmp_path / "made", lambda name: True):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert listing(tmp_path) == []


KILLED = """
    import os, signal
    from pathlib import Path
    from llm_mer.storage import atomic_files
    target = Path("made")
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    if {point!r} == "between the renames":
        rename, calls = Path.rename, []
        def second(self, to):
            calls.append(self)
            if len(calls) == 2:
                stop()
            return rename(self, to)
        Path.rename = second
    elif {point!r} == "while the old one is deleted":
        atomic_files.shutil.rmtree = stop
    with atomic_files.replaced_folder(target, lambda name: name.startswith("ours.")) as staging:
        (staging / "ours.a").write_text("new" * 1000)
        if {point!r} == "while it is written":
            stop()
"""


@pytest.mark.parametrize("point", ["while it is written", "between the renames", "while the old one is deleted"])
def test_what_a_killed_writer_left_goes_with_the_next_write_and_nothing_else_does(tmp_path: Path, point: str) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "ours.a").write_text("old")
    (target / "notes.txt").write_text("mine")
    beside = {".made-2024": "a folder of someone's", ".made.staging-backup": "another", "made.staging-0123456789ab": "no"}
    for name, text in beside.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    program = textwrap.dedent(KILLED).format(point=point)
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(listing(tmp_path)) > 1 + len(beside) or point == "between the renames"
    with replaced_folder(target, lambda name: name.startswith("ours.")) as staging:
        (staging / "ours.a").write_text("newest")
    assert listing(tmp_path) == sorted(["made", *beside])
    assert listing(target) == ["notes.txt", "ours.a"]
    assert (target / "notes.txt").read_text() == "mine"
    assert all((tmp_path / name / "x").read_text() == text for name, text in beside.items())


def test_a_writer_at_work_keeps_its_folder_while_another_writes_the_same_target(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "made", lambda name: True) as first:
        (first / "ours.a").write_text("first")
        program = textwrap.dedent(KILLED).format(point="never")
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
        assert (first / "ours.a").read_text() == "first"
    assert (tmp_path / "made" / "ours.a").read_text() == "first"
    assert listing(tmp_path) == ["made"]


def test_a_folder_of_others_stays_inside_the_new_one_of_the_same_name(tmp_path: Path) -> None:
    old, new = tmp_path / "run", tmp_path / ".run.overwriting"
    for folder, files in ((old, ["w.bin", "runs/a/events.1"]), (new, ["w.bin", "runs/a/events.2"])):
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(folder.name)
    install_folder(new, old, lambda name: name == "w.bin")
    found = {str(path.relative_to(old)): path.read_text() for path in old.rglob("*") if path.is_file()}
    assert found == {"w.bin": ".run.overwriting", "runs/a/events.1": "run", "runs/a/events.2": ".run.overwriting"}
    assert listing(tmp_path) == ["run"]
