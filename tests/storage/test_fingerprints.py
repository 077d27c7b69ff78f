"""Fingerprints are SHA-256 as others compute it, and change with every byte, name, type and shape."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_mer.storage import fingerprints
from llm_mer.storage.fingerprints import FileIdentity, file_sha256, files_sha256, json_sha256, safetensors_sha256


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The digests that are computed, by kind and files; files that have just been written count as settled."""
    found: list[tuple[str, list[str]]] = []
    read = fingerprints._read_digest

    def noted(kind: str, files: tuple[FileIdentity, ...]) -> str:
        found.append((kind, [Path(file.path).name for file in files]))
        return read(kind, files)

    monkeypatch.setattr(fingerprints, "_read_digest", noted)
    monkeypatch.setattr(fingerprints, "SETTLED_NS", -(10**18))
    return found


def test_a_file_is_read_once_for_each_kind_of_digest_as_long_as_it_is_the_same(
    tmp_path: Path, reads: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path / "weights"
    save_file({"a": torch.zeros(3)}, path)
    for _ in range(3):
        assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        safetensors_sha256(path)
        files_sha256([path])
    assert reads == [(kind, ["weights"]) for kind in ("content", "tensors", "names and contents")]


def test_a_file_that_was_changed_replaced_or_set_back_in_time_is_read_again(
    tmp_path: Path, reads: list[tuple[str, list[str]]]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before, first = path.stat(), file_sha256(path)
    path.write_bytes(b"two")  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest() != first
    (tmp_path / "b").write_bytes(b"six")
    os.replace(tmp_path / "b", path)
    assert file_sha256(path) == hashlib.sha256(b"six").hexdigest()
    assert len(reads) == 3


def test_a_digest_of_a_file_that_has_just_been_written_is_not_kept(
    tmp_path: Path, reads: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "SETTLED_NS", 10**18)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert file_sha256(path) == file_sha256(path)
    assert len(reads) == 2


def test_digests_are_hashlibs(tmp_path: Path) -> None:
    content = b"x" * ((1 << 20) + 3)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert files_sha256([tmp_path / "b", tmp_path / "a"]) == hashlib.sha256(b"a" + content + b"b").hexdigest()
    assert json_sha256(["é"]) == hashlib.sha256('["é"]'.encode()).hexdigest()
    assert json_sha256({"b": 1, "a": 2}, sort_keys=True) == json_sha256({"a": 2, "b": 1})


@pytest.mark.parametrize(
    "changed",
    [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.nextafter(torch.ones(1), torch.zeros(1))},
    ],
    ids=["name", "shape", "type", "value"],
)
def test_tensors_are_told_by_name_shape_type_and_value_whatever_the_file_says_beside(
    tmp_path: Path, changed: dict[str, torch.Tensor]
) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    save_file(tensors, tmp_path / "one")
    save_file(dict(reversed(tensors.items())), tmp_path / "two", metadata={"format": "pt"})
    save_file(changed, tmp_path / "three")
    assert safetensors_sha256(tmp_path / "one") == safetensors_sha256(tmp_path / "two")
    assert safetensors_sha256(tmp_path / "one") != safetensors_sha256(tmp_path / "three")
