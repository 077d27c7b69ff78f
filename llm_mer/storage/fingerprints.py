"""SHA-256 fingerprints of files, folders, named tensors and JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files in the order of their paths; folders are left out, so that files may move."""
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def safetensors_sha256(path: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of a safetensors file's tensors in the order of their names."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, "pt") as stream:
        for name in sorted(stream.keys()):
            value = stream.get_tensor(name).contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def json_sha256(value: Any, sort_keys: bool = False, ensure_ascii: bool = False) -> str:
    """SHA-256 of a value's JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii).encode()).hexdigest()
