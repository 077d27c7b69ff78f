"""A folder on which something is mounted is known before anything is written that could not take its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.storage import mount_points
from llm_mer.storage.atomic_files import new_folder, replaced_folder
from llm_mer.storage.mount_points import is_mount_point

LINE = "36 35 98:0 / {place} rw,noatime master:1 - ext3 /dev/root rw,errors=continue"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the same disk that the system's list names."""
    folder = tmp_path / "a volume"
    folder.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"{LINE.format(place='/')}\n{LINE.format(place=str(folder).replace(' ', chr(92) + '040'))}\n")
    monkeypatch.setattr(mount_points, "MOUNTS", mounts)
    return folder


def test_a_mounted_folder_is_told_from_those_beside_and_in_it(mounted: Path) -> None:
    (mounted / "in").mkdir()
    assert is_mount_point(mounted)
    assert is_mount_point(Path("/"))
    assert not is_mount_point(mounted / "in")
    assert not is_mount_point(mounted.parent)
    assert not is_mount_point(mounted.parent / "absent")


def test_it_is_refused_as_a_target_before_anything_is_written(mounted: Path) -> None:
    for writer in (new_folder(mounted), replaced_folder(mounted, lambda _: True)):
        with pytest.raises(UserError, match=r"a volume: it is a mount point, .*; name a folder in it"), writer:
            raise AssertionError("something was written")
    assert list(mounted.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the list is Linux's")
def test_the_systems_list_is_there() -> None:
    assert len(mount_points.MOUNTS.read_text().splitlines()) > 0
    assert all(len(line.split()) >= 10 for line in mount_points.MOUNTS.read_text().splitlines())
