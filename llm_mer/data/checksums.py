"""Checksums of a split's Arrow file: written with a store, verified when a part of the file is first read.

An Arrow file is a schema followed by record batches, each with a small header and a body of buffers. Arrow trusts the bytes:
a flipped bit in a feature, a score or a transcript reads as another value. Three kinds of digests detect it without reading
the whole file when it is opened:

- of all headers, verified on opening, before Arrow follows the offsets in them;
- of each batch, verified when one of its rows is first read;
- of each descriptive column (ids, labels, …), verified when the whole column is first read, which touches no features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.errors import UserError

CONTINUATION = b"\xff\xff\xff\xff"
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 24


@dataclass(frozen=True)
class SplitChecksums:
    """Of one ``SPLIT.arrow``.

    Attributes:
        size: bytes of the file. heads: SHA-256 of the headers of the schema and of every batch.
        rows: of each batch. starts: offset of each batch in the file. batches: SHA-256 of each, header and body.
        columns: ``{descriptive column: SHA-256 of its buffers in all batches}``.
    """

    size: int
    heads: str
    rows: list[int]
    starts: list[int]
    batches: list[str]
    columns: dict[str, str]


class _PositionalFile:
    """A file read by position and kept open, so that a replaced store stays readable for processes that opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self.size = os.fstat(self._stream.fileno()).st_size

    def __reduce__(self) -> tuple[Any, ...]:
        return _PositionalFile, (self.path,)

    def read(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` to ``end``, fewer if the file ends before."""
        return os.pread(self._stream.fileno(), max(end - start, 0), start)

    def digest(self, start: int, end: int) -> str:
        """SHA-256 of a range, read in chunks from the file, not the mapping, which keeps resident memory constant."""
        digest = hashlib.sha256()
        while start < end and (chunk := self.read(start, min(end, start + CHUNK_BYTES))):
            digest.update(chunk)
            start += len(chunk)
        return digest.hexdigest()

    def heads_digest(self, starts: Sequence[int]) -> str:
        """SHA-256 of the headers of the schema and the batches; a damaged length is used as is, and changes the digest."""
        digest = hashlib.sha256()
        for start in (0, *starts):
            prefix = self.read(start, start + 8)
            length = int.from_bytes(prefix[4:] if prefix[:4] == CONTINUATION else prefix[:4], "little")
            digest.update(self.read(start, start + min(length, MAX_HEADER_BYTES) + 8))
        return digest.hexdigest()


def _batch_bounds(starts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    yield from zip(starts, (*starts[1:], size), strict=True)


def column_digest(chunks: Sequence[Any]) -> str:
    """SHA-256 of a column's buffers, chunk by chunk."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(f"{len(chunk)} {chunk.offset}".encode())
        for buffer in chunk.buffers():
            digest.update(b"-" if buffer is None else b"+")
            if buffer is not None:
                digest.update(buffer)
    return digest.hexdigest()


def compute_checksums(path: Path, columns: Sequence[str]) -> SplitChecksums:
    """Compute the checksums of an Arrow stream file that was just written."""
    import pyarrow as pa

    starts: list[int] = []
    rows: list[int] = []
    chunks: dict[str, list[Any]] = {name: [] for name in columns}
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_stream(source)
        while True:
            start = source.tell()
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            starts.append(start)
            rows.append(batch.num_rows)
            for name in columns:
                chunks[name].append(batch.column(name))
        digests = {name: column_digest(found) for name, found in chunks.items()}
        chunks.clear()
    file = _PositionalFile(path)
    batches = [file.digest(start, end) for start, end in _batch_bounds(starts, file.size)]
    return SplitChecksums(file.size, file.heads_digest(starts), rows, starts, batches, digests)


class ChecksumVerifier:
    """Verifies a split's file against its checksums, each part once.

    Raises:
        UserError: on construction and from each method, naming the file and the part that differs from what was written.
    """

    def __init__(self, path: Path, checksums: SplitChecksums) -> None:
        self.path, self.checksums = path, checksums
        self._ends = np.cumsum(checksums.rows)
        self._verified = np.zeros(len(checksums.rows), dtype=bool)
        self._columns: set[str] = set()
        self._bounds = list(_batch_bounds(checksums.starts, checksums.size))
        self._file = _PositionalFile(path)
        if self._file.size != checksums.size:
            raise UserError(f"{path}: damaged or cut off: {self._file.size} bytes, {checksums.size} were written")
        if self._file.heads_digest(checksums.starts) != checksums.heads:
            raise self._damage_error("its layout is")

    def _damage_error(self, part: str) -> UserError:
        return UserError(f"{self.path}: damaged: {part} not as written; make the store again from its source")

    def verify_row(self, row: int) -> None:
        """Verify the batch that holds this row."""
        batch = int(np.searchsorted(self._ends, row, side="right"))
        if self._verified[batch]:
            return
        start, end = self._bounds[batch]
        if self._file.digest(start, end) != self.checksums.batches[batch]:
            first = int(self._ends[batch]) - self.checksums.rows[batch]
            raise self._damage_error(f"utterances {first} to {int(self._ends[batch]) - 1} (bytes {start} to {end}) are")
        self._verified[batch] = True

    def verify_column(self, name: str, chunks: Sequence[Any]) -> None:
        """Verify a whole descriptive column."""
        if name in self._columns:
            return
        if column_digest(chunks) != self.checksums.columns.get(name):
            raise self._damage_error(f"its column {name} is")
        self._columns.add(name)
