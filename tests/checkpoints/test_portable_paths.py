"""Paths in a manifest: told from the run's folder, found again where it lies, and never above what both share."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from llm_mer.checkpoints.portable_paths import make_paths_portable, resolve_portable_paths

RUN = Path("/home/ann/work/runs/one")


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/home/ann/work/data/store", "{run}/../../data/store"),
        ("/home/ann/work/runs/one", "{run}"),
        ("/home/ann/work/runs/one/backbone", "{run}/backbone"),
        ("mosi:/home/ann/work/data/mosi", "mosi:{run}/../../data/mosi"),
        ("--data=/home/ann/store", "--data={run}/../../../store"),
        ("/mnt/disk/store", "store"),
        ("/home/bob/store", "store"),
        ("data/store", "data/store"),
        ("meta-llama/Llama-3", "meta-llama/Llama-3"),
        ("a text / with a stroke", "a text / with a stroke"),
    ],
)
def test_a_path_is_told_from_the_runs_folder(path: str, written: str) -> None:
    assert make_paths_portable(path, RUN) == written
    if "{run}" in written or path == written:
        assert resolve_portable_paths(written, RUN) == path
        moved = resolve_portable_paths({"a": [written]}, Path("/srv/x/y/z/runs/one"))["a"][0]
        assert moved == path.replace("/home/ann/work", "/srv/x/y/z").replace("/home/ann", "/srv/x/y")


def test_the_users_name_below_what_is_shared_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    assert make_paths_portable("/data/shared/ann/store", Path("/data/shared/runs/one")) == "store"
    assert make_paths_portable("/data/shared/ann/store", Path("/data/shared/ann/run")) == "{run}/../store"


def test_other_values_are_left_as_they_are() -> None:
    options = {"seed": 1, "prompts": ["short"], "none": None, "rate": 0.5}
    assert make_paths_portable(options, RUN) == resolve_portable_paths(options, RUN) == options
