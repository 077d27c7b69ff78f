"""A model's configuration brings no code with it, and an archive of features no more than it holds."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.backbones.loading import load_backbone
from llm_mer.errors import UserError
from llm_mer.inference import inputs
from llm_mer.inference.inputs import read_features

KERNEL = "kernels-community/flash-attn"


def with_entries(source: Path, folder: Path, entries: dict[str, Any]) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": KERNEL},
        {"_attn_implementation": f"{KERNEL}@main"},
        {"_attn_implementation_internal": f"{KERNEL}:forward"},
        {"experts_implementation": KERNEL},
        {"attn_implementation": {"text_config": KERNEL}},
        {"text_config": {"attn_implementation": KERNEL}},
        {"parts": [{"attn_implementation": f"paged|{KERNEL}"}]},
        {"use_kernels": True},
    ],
    ids=str,
)
def test_kernels_that_a_configuration_names_are_refused(
    backbones: dict[str, Path], tmp_path: Path, entries: dict[str, Any]
) -> None:
    folder = with_entries(backbones["llama"], tmp_path / "backbone", entries)
    with pytest.raises(UserError, match="its configuration asks for kernels of a hub"):
        load_backbone(folder)


def test_an_attention_of_transformers_own_in_a_configuration_is_no_kernel(
    backbones: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_entries(backbones["llama"], tmp_path / "backbone", {"attn_implementation": "eager", "use_kernels": False})
    assert load_backbone(folder).model.config._attn_implementation == "eager"


def test_code_beside_a_model_is_not_run(backbones: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n"
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    known = with_entries(backbones["llama"], tmp_path / "known", {"auto_map": names})
    unknown = with_entries(backbones["llama"], tmp_path / "unknown", {"auto_map": names, "model_type": "own"})
    for folder in (known, unknown):
        (folder / "own.py").write_text(code)
    load_backbone(known)
    with pytest.raises(UserError):
        load_backbone(unknown)
    assert not marker.exists()


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def head(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 40, 1), (3, 4, 1 << 30)])
def test_an_array_that_announces_more_than_its_file_holds_is_refused(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npz(tmp_path / "a.npz", {"audio": head(shape) + bytes(64)})
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("memory was taken for it"))
    with pytest.raises(UserError, match=r"'audio\.npy' announces an array of shape"):
        read_features(str(path))


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path / "a.npz", {"audio": head((2_000, 1_000)) + bytes(8_000_000)})
    assert path.stat().st_size < 20_000
    assert read_features(str(path))["audio"].shape == (2_000, 1_000)
    monkeypatch.setattr(inputs, "MAX_FEATURE_BYTES", 1 << 20)
    with pytest.raises(UserError, match=r"\d+ bytes when unpacked; at most 1048576 are read"):
        read_features(str(path))
