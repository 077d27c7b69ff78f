"""Helpers shared by the readers: labels, padding, arrays of an archive, neighbours in a dialogue."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.numbers import whole_number
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task


def require_file(path: Path, hint: str) -> Path:
    """Return the path if it is a file. Raises ``UserError`` with ``hint``, which says what is expected there."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {hint}")
    return path


def label_name(task: Task, value: Any, name: str, where: str, aliases: Mapping[str, str] | None = None) -> str:
    """The task's name for a label given by name, alias or word in either language; an ignored label is unchanged."""
    text = str(value).strip()
    text = (aliases or {}).get(text, text)
    return text if task.ignores(text) else task.label_names[task.class_index(text, f"{where}: field {name}")]


def polarity(value: str, name: str, where: str) -> dict[str, str | float]:
    """The target ``polarity``, empty for a neutral utterance: the task ``polarity`` is positive against negative."""
    if value not in ("negative", "neutral", "positive"):
        raise UserError(f"{where}: field {name} is {value!r}; it must be negative, neutral or positive")
    return {} if value == "neutral" else {"polarity": value}


def trim_padding(features: Any, length: Any, name: str, length_name: str, where: str) -> np.ndarray | None:
    """The first ``length`` steps of a padded ``(T, D)`` sequence as float32; None if there are none.

    Raises:
        UserError: not ``(T, D)``, or ``length`` exceeds the number of steps.
    """
    try:
        values = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{where}: field {name} is not an array of numbers") from None
    if values.ndim != 2:
        raise UserError(f"{where}: field {name} has shape {values.shape}; it must be (steps, size)")
    steps = whole_number(length, length_name, where)
    if not 0 <= steps <= len(values):
        raise UserError(f"{where}: field {length_name} is {steps}, but {name} has {len(values)} steps")
    return values[:steps] if steps else None


@contextmanager
def _npz_member(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """Open an array of an ``.npz``: its bytes from the first value on, shape, whether it is column-major, and dtype."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = header(stream)
            if dtype.kind not in "fiu":
                raise UserError(f"{path}: {name} holds {dtype}; it must hold numbers")
            yield stream, shape, columns_first, dtype
    except KeyError:
        raise UserError(f"{path}: no array named {name}") from None
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: {name}: damaged or not an .npz file: {error}") from None


def npz_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array of an ``.npz``, read from its header. Raises ``UserError`` for a damaged file or no such array."""
    with _npz_member(path, name) as (_, shape, _, _):
        return shape


def npz_rows(path: Path, name: str, block: int = 256) -> Iterator[np.ndarray]:
    """Rows ``(D,)`` of an array ``(N, D)`` of an ``.npz``, with ``block`` of them in memory at a time.

    Raises:
        UserError: a damaged file, no such array, or one of the wrong shape or type.
    """
    with _npz_member(path, name) as (stream, shape, columns_first, dtype):
        if len(shape) != 2 or columns_first:
            order = ", columns first" if columns_first else ""
            raise UserError(f"{path}: {name} has shape {shape}{order}; it must be (N, D), rows first")
        for start in range(0, shape[0], block):
            rows = min(block, shape[0] - start)
            content = stream.read(rows * shape[1] * dtype.itemsize)
            yield from np.frombuffer(content, dtype=dtype).reshape(rows, shape[1])


def with_neighbours(utterances: Iterable[Utterance], count: int, modality: str = "text") -> list[Utterance]:
    """Concatenate the vector of each utterance with those of ``count`` neighbours on each side in the same dialogue.

    ``(1, D)`` becomes ``(1, (2 · count + 1) · D)`` in the order ``−count … 0 … +count``, with zeros beyond the ends of a
    dialogue and for neighbours without a vector. This reads future utterances, so it suits recordings, not live use.

    Raises:
        UserError: a sequence of more than one step, or an utterance without dialogue and turn.
    """
    collected, column = list(utterances), f"{modality}_features"
    dialogues: dict[tuple[str, str], list[int]] = {}
    for row, utterance in enumerate(collected):
        if utterance.dialogue_id is None or utterance.turn is None:
            raise UserError(f"utterance {utterance.id!r}: neighbours need dialogue_id and turn")
        features = getattr(utterance, column)
        if features is not None and len(features) != 1:
            raise UserError(
                f"utterance {utterance.id!r}: {column} has {len(features)} steps; neighbours need one vector per utterance"
            )
        dialogues.setdefault((utterance.language, utterance.dialogue_id), []).append(row)
    widened: dict[int, Utterance] = {}
    for rows in dialogues.values():
        rows.sort(key=lambda row: collected[row].turn or 0)
        for position, row in enumerate(rows):
            own = getattr(collected[row], column)
            if own is None:
                continue
            parts = []
            for step in range(-count, count + 1):
                inside = 0 <= position + step < len(rows)
                other = getattr(collected[rows[position + step]], column) if inside else None
                parts.append(np.zeros_like(own) if other is None else other)
            change: dict[str, Any] = {column: np.concatenate(parts, axis=1)}  # Any: the field is known by name only
            widened[row] = dataclasses.replace(collected[row], **change)
    return [widened.get(row, utterance) for row, utterance in enumerate(collected)]
