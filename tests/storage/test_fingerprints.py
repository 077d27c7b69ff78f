"""Fingerprints are SHA-256 as others compute it, and change with every byte, name, type and shape."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_mer.storage.fingerprints import file_sha256, files_sha256, json_sha256, safetensors_sha256


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
