"""Checksums of a split's Arrow file: written with a store, compared when a part of the file is read for the first time.

An Arrow file is a schema and record batches one after another, each a small head and a body of buffers. Arrow trusts the
bytes: a flipped bit in a feature, a score or a transcript reads as another value. Three kinds of digests find it without a
pass over the file at opening:

- of all heads, compared at opening, before Arrow follows the offsets in them;
- of each batch, compared when one of its rows is read first;
- of each descriptive column (ids, labels, …), compared when the whole column is read first, which touches no features.
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
PIECE_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 24


@dataclass(frozen=True)
class SplitChecksums:
    """Of one ``SPLIT.arrow``.

    Attributes:
        size: bytes of the file. heads: SHA-256 of the schema and every batch's head.
        rows: of each batch. starts: where each batch begins in the file. batches: SHA-256 of each, head and body.
        columns: ``{descriptive column: SHA-256 of its buffers in all batches}``.
    """

    size: int
    heads: str
    rows: list[int]
    starts: list[int]
    batches: list[str]
    columns: dict[str, str]


class _File:
    """A file read by position, kept open: a store that is replaced can still be read by those who opened it before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self.size = os.fstat(self._stream.fileno()).st_size

    def __reduce__(self) -> tuple[Any, ...]:
        return _File, (self.path,)

    def read(self, start: int, end: int) -> bytes:
        """Bytes from ``start`` to ``end``, fewer where the file ends before."""
        return os.pread(self._stream.fileno(), max(end - start, 0), start)

    def digest(self, start: int, end: int) -> str:
        """SHA-256 of a range, read in pieces: through the file, not the mapping, so that resident memory stays flat."""
        digest = hashlib.sha256()
        while start < end and (piece := self.read(start, min(end, start + PIECE_BYTES))):
            digest.update(piece)
            start += len(piece)
        return digest.hexdigest()

    def heads_digest(self, starts: Sequence[int]) -> str:
        """SHA-256 of the heads of the schema and the batches; a damaged length is read as it is, and the digest tells."""
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
    """Checksums of an Arrow stream file that was just written."""
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
    file = _File(path)
    batches = [file.digest(start, end) for start, end in _batch_bounds(starts, file.size)]
    return SplitChecksums(file.size, file.heads_digest(starts), rows, starts, batches, digests)


class ChecksumVerifier:
    """Compares a split's file with its checksums, each part once.

    Raises:
        UserError: at construction and from each method, naming the file and the part that is not as it was written.
    """

    def __init__(self, path: Path, checksums: SplitChecksums) -> None:
        self.path, self.checksums = path, checksums
        self._ends = np.cumsum(checksums.rows)
        self._verified = np.zeros(len(checksums.rows), dtype=bool)
        self._columns: set[str] = set()
        self._bounds = list(_batch_bounds(checksums.starts, checksums.size))
        self._file = _File(path)
        if self._file.size != checksums.size:
            raise UserError(f"{path}: damaged or cut off: {self._file.size} bytes, {checksums.size} were written")
        if self._file.heads_digest(checksums.starts) != checksums.heads:
            raise self._damaged("its layout is")

    def _damaged(self, part: str) -> UserError:
        return UserError(f"{self.path}: damaged: {part} not as written; make the store again from its source")

    def verify_row(self, row: int) -> None:
        """The batch that holds this row."""
        batch = int(np.searchsorted(self._ends, row, side="right"))
        if self._verified[batch]:
            return
        start, end = self._bounds[batch]
        if self._file.digest(start, end) != self.checksums.batches[batch]:
            first = int(self._ends[batch]) - self.checksums.rows[batch]
            raise self._damaged(f"utterances {first} to {int(self._ends[batch]) - 1} (bytes {start} to {end}) are")
        self._verified[batch] = True

    def verify_column(self, name: str, chunks: Sequence[Any]) -> None:
        """A descriptive column as a whole."""
        if name in self._columns:
            return
        if column_digest(chunks) != self.checksums.columns.get(name):
            raise self._damaged(f"its column {name} is")
        self._columns.add(name)
