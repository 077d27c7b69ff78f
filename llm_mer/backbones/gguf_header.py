"""The header of a GGUF file: what it says of its model, and that all of its tensors lie within it.

A count in a header can be any number up to 2**64, and readers that follow it past the end of a file loop over nothing. Every
count and length is therefore checked against the size of the file before it is followed.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Type of a value in a header → how :mod:`struct` reads it; version 3 of the format."""
LONGEST_TEXT = 1 << 20
"""Bytes of a text; the longest in use are chat templates of some 20 KB."""
MOST_DIMENSIONS = 4
ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: its shape as stored (the fastest dimension first) and the number of its type."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
        values: ``{key: value}``; of an array the number of its entries.
        tensors: ``{name: tensor}``. data_start: place of the first tensor's bytes. size: bytes of the file.
    """

    values: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int
    size: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.values.get("general.architecture", ""))

    def of_model(self, name: str) -> Any:
        """A value of the architecture's own, such as ``block_count``; None where there is none."""
        return self.values.get(f"{self.architecture}.{name}")


class _Damaged(Exception):
    """What is wrong in a header."""


class _Bytes:
    """Reads values one after another and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def scalar(self, form: str) -> Any:
        size = struct.calcsize(form)
        if self.place + size > len(self.data):
            raise _Damaged("it ends within its header")
        (value,) = struct.unpack_from(form, self.data, self.place)
        self.place += size
        return value

    def text(self) -> str:
        size = self.scalar("<Q")
        if size > LONGEST_TEXT or self.place + size > len(self.data):
            raise _Damaged(f"a text of its header should have {size} bytes")
        raw = self.data[self.place : self.place + size]
        self.place += size
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged("a text of its header is not UTF-8") from None

    def skip_text(self) -> None:
        size = self.scalar("<Q")
        if size > LONGEST_TEXT or self.place + size > len(self.data):
            raise _Damaged(f"a text of its header should have {size} bytes")
        self.place += size

    def value(self, kind: int) -> Any:
        """A value; of an array, which is passed over, its length."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            raise _Damaged(f"its header has a value of the unknown type {kind}")
        entry, count = self.scalar("<I"), self.scalar("<Q")
        smallest = struct.calcsize(SCALARS[entry]) if entry in SCALARS else 8
        if entry not in SCALARS and entry != STRING:
            raise _Damaged(f"its header has an array of the unknown type {entry}")
        if count * smallest > len(self.data) - self.place:
            raise _Damaged(f"an array of its header should have {count} entries")
        if entry != STRING:
            self.place += count * smallest
            return count
        for _ in range(count):
            self.skip_text()
        return count


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file; no tensor is read.

    Raises:
        UserError: no GGUF file, one of another version or byte order, a header that is cut off or says what cannot be, or
            tensors that reach past the end of the file.
    """
    size = path.stat().st_size
    if size < 24:
        raise UserError(f"backbone: {path} is no GGUF file: it has {size} bytes")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise UserError(
                f"backbone: {path} is no GGUF file: it begins with {data[:4]!r} instead of {MAGIC!r}; name a GGUF file, a "
                "folder, or a hub name"
            )
        try:
            return _read(data, size)
        except _Damaged as error:
            raise UserError(f"backbone: {path} is damaged or cut off: {error}; get the file again") from None


def _read(data: mmap.mmap, size: int) -> GgufHeader:
    reader = _Bytes(data)
    reader.place = 4
    version = reader.scalar("<I")
    if version not in VERSIONS:
        order = "; it is of the other byte order" if version and version & 0xFFFF == 0 else ""
        raise _Damaged(f"its version is {version}, this version reads {' and '.join(map(str, VERSIONS))}{order}")
    tensor_count, value_count = reader.scalar("<Q"), reader.scalar("<Q")
    # A key has 8 bytes of length, 4 of type and at least 1 of value; a tensor at least 32 in all.
    if value_count * 13 + tensor_count * 32 > size:
        raise _Damaged(f"its header should name {tensor_count} tensors and {value_count} values")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = reader.text()
        if key in values:
            raise _Damaged(f"its header has {key!r} twice")
        values[key] = reader.value(reader.scalar("<I"))
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.scalar("<I")
        if dimensions > MOST_DIMENSIONS or name in tensors:
            raise _Damaged(f"its tensor {name!r} has {dimensions} dimensions, or stands there twice")
        shape = tuple(reader.scalar("<Q") for _ in range(dimensions))
        tensors[name] = GgufTensor(shape, reader.scalar("<I"), reader.scalar("<Q"))
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"its alignment is {alignment!r}, which must be a power of two")
    start = -(-reader.place // alignment) * alignment
    return GgufHeader(values, tensors, start, size)


def check_tensors_lie_inside(path: Path, header: GgufHeader, block_sizes: dict[int, tuple[int, int]]) -> None:
    """Check that the file is long enough for its tensors.

    Args:
        block_sizes: ``{type: (values, bytes)}`` of a block of each type that can be dequantised.

    Raises:
        UserError: a tensor of an unknown type, or one that reaches past the end.
    """
    for name, tensor in header.tensors.items():
        if tensor.type not in block_sizes:
            raise UserError(
                f"backbone: {path}: tensor {name!r} is of type {tensor.type}, which this gguf package cannot read"
            )
        values, size = block_sizes[tensor.type]
        end = header.data_start + tensor.offset + math.prod(tensor.shape) // values * size
        if end > header.size:
            raise UserError(
                f"backbone: {path} is cut off: tensor {name!r} should end at byte {end}, and the file has {header.size}; "
                "get the file again"
            )
