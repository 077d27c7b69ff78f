"""SHA-256 fingerprints of files, folders, named tensors and JSON values.

A file is read once in a process for each kind of digest, as long as it stays the file it was (:class:`FileIdentity`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
SETTLED_NS = 2_000_000_000
"""Age of a file's last change, in nanoseconds, from which on its digest is kept: file systems tell times in steps of up to
two seconds, so that a second change within one may leave them as they were."""
CACHE_SIZE = 4096
"""Digests that are kept, the last ones asked for."""


@dataclass(frozen=True)
class FileIdentity:
    """What changes when a file is written, replaced or moved: place, size, times in nanoseconds, device and inode.

    ``changed`` is the system's own time of the last change, which no program sets, so that restoring the time of the last
    modification hides nothing.
    """

    path: str
    size: int
    modified: int
    changed: int
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """That of a file as it is now. Raises ``OSError`` without one."""
        now = os.stat(path)
        return cls(os.path.abspath(path), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_dev, now.st_ino)

    @property
    def is_settled(self) -> bool:
        """Whether another change would show."""
        return time.time_ns() - max(self.modified, self.changed) > SETTLED_NS


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    return _digest("content", [path])


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files in the order of their paths; folders are left out, so that files may move."""
    return _digest("names and contents", sorted(set(paths)))


def safetensors_sha256(path: Path) -> str:
    """SHA-256 over names, types, shapes and bytes of a safetensors file's tensors in the order of their names."""
    return _digest("tensors", [path])


def _digest(kind: str, paths: list[Path]) -> str:
    files = tuple(map(FileIdentity.of, paths))
    # A change while it is read gives the file another identity, under which nothing is kept.
    return _kept_digest(kind, files) if all(file.is_settled for file in files) else _read_digest(kind, files)


@lru_cache(maxsize=CACHE_SIZE)
def _kept_digest(kind: str, files: tuple[FileIdentity, ...]) -> str:
    return _read_digest(kind, files)


def _read_digest(kind: str, files: tuple[FileIdentity, ...]) -> str:
    paths = [Path(file.path) for file in files]
    if kind == "tensors":
        return _hash_tensors(paths[0])
    if kind == "content":
        with paths[0].open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _hash_tensors(path: Path) -> str:
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
