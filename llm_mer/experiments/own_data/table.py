"""A user's table in memory, and which of its columns are fields of a manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mer.data.sources.column_names import CLIP
from llm_mer.data.sources.manifest import FIELDS, manifest_rows
from llm_mer.errors import UserError
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.storage.quoting import list_names, quote

IGNORE = "ignore"
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "clip_id", "utterance_id", "编号"),
    CLIP: ("clip", "file", "path", "filename", "file_name", "clip_path", "file_path", "文件"),
    "video": ("video",),
    "audio": ("audio",),
    "text": ("text", "transcript", "transcription", "sentence", "utterance", "文本", "转写"),
    "split": ("split", "划分"),
    "language": ("language", "lang", "语言"),
    "speaker": ("speaker", "speaker_id", "actor", "person", "subject", "participant", "说话人"),
    "dialogue_id": ("dialogue_id", "dialogue", "conversation", "conversation_id"),
    "turn": ("turn",),
    "tags": ("tags",),
    "votes": ("votes",),
    "annotators": ("annotators",),
}
"""The names a column may have, in any letter case, by the field it then is."""
SEGMENTS = frozenset(("start", "end", "start_time", "end_time", "begin", "onset", "offset", "start_s", "end_s"))
"""Names of columns that would cut a clip out of a recording."""


@dataclass(frozen=True)
class Cell:
    """A value that is not empty, and where it stands: ``file:line``."""

    where: str
    value: Any

    @property
    def text(self) -> str:
        """The value as text, without white space around it."""
        return str(self.value).strip()


@dataclass(frozen=True)
class Table:
    """Rows as ``(file:line, {column: value})``, cells that are empty or blank left out, and all columns in order."""

    path: Path
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, Any]], ...]

    def cells(self, column: str) -> list[Cell]:
        """The values of a column, in the order of the rows that have one."""
        return [Cell(where, row[column]) for where, row in self.rows if column in row]


def read_table(path: Path) -> Table:
    """Read a table whole.

    Raises:
        UserError: as :func:`~llm_mer.data.sources.manifest.manifest_rows`, a row that cannot be read, or no row at all.
    """
    rows = []
    for where, entry in manifest_rows(path):
        if isinstance(entry, UserError):
            raise entry
        rows.append((where, {k: v for k, v in entry.items() if not isinstance(v, str) or v.strip()}))
    columns = dict.fromkeys(column for _, row in rows for column in row)
    if not columns:
        raise UserError(
            f"{path}: the table has no row with a value; its first line names the columns, each other one is a clip"
        )
    return Table(path, file_sha256(path), tuple(columns), tuple(rows))


def find_fields(table: Table, given: Sequence[str]) -> dict[str, str]:
    """``{column: field}`` of the columns that are fields of a manifest, or :data:`IGNORE`, by name or as ``given``.

    Args:
        given: ``NAME=FIELD`` of the command line.

    Raises:
        UserError: a column or field that is not there, two columns for one field, or columns that would cut recordings.
    """
    fields = read_pairs(given, table, "columns", "clip, text, speaker, …, or ignore")
    for column, name in fields.items():
        if name not in (*FIELDS, CLIP, IGNORE):
            known = ", ".join((*FIELDS, CLIP, IGNORE))
            raise UserError(f"--columns {column}={name}: {name!r} is no field; choose from {known}")
    named = {spelling: name for name, spellings in NAMES.items() for spelling in spellings}
    for column in table.columns:
        field = named.get(_plain(column))
        if column in fields or field is None:
            continue
        if field not in fields.values():
            fields[column] = field
        else:
            first = next(other for other, known in fields.items() if known == field)
            raise UserError(
                f"{table.path}:1: columns {first!r} and {column!r} are both read as {field!r}; "
                f"say --columns {column}=ignore, or which field it is"
            )
    alone = next((column for column, field in fields.items() if field == "video"), None)
    if alone is not None and "audio" not in fields.values() and CLIP not in fields.values() and not is_given(given, alone):
        fields[alone] = CLIP  # whoever names one file of a clip means its sound as well
    cut = [column for column in table.columns if _plain(column) in SEGMENTS and column not in fields]
    if cut:
        ignored = " ".join(f"{column}=ignore" for column in cut)
        raise UserError(
            f"{table.path}:1: columns {list_names(cut)} look like times within a recording, and clips are read whole: cut "
            f"the clips first (ffmpeg -ss … -to …), or say --columns {ignored}"
        )
    if not {CLIP, "video", "audio", "text"} & set(fields.values()):
        raise UserError(
            f"{table.path}:1: no column is a clip or a text; found {list_names(table.columns)}; name one {CLIP}, video, "
            "audio or text, or say --columns NAME=clip"
        )
    return fields


def is_given(pairs: Sequence[str], column: str) -> bool:
    """Whether ``NAME=FIELD`` of a command line names the column."""
    return any(pair.rpartition("=")[0] == column for pair in pairs)


def read_pairs(given: Sequence[str], table: Table, option: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` of a command line, by name of a column of the table.

    Raises:
        UserError: another form, or a column that is not there.
    """
    found = {}
    for pair in given:
        name, separator, value = pair.rpartition("=")
        if not separator or not name or not value:
            raise UserError(f"--{option} {quote(pair)}: write NAME=VALUE, the value being {example}")
        check_column(name, table, option)
        found[name] = value
    return found


def check_column(name: str, table: Table, option: str) -> None:
    """Raises :class:`UserError` for a name that is no column with values."""
    if name not in table.columns:
        raise UserError(
            f"--{option} {name}: {table.path} has no such column with values; it has {list_names(table.columns)}"
        )


def describe_fields(fields: Mapping[str, str]) -> str:
    """``text, 'file' as clip``: the columns that are fields, and what they are where their name differs."""
    shown = [name if column == name else f"{column!r} as {name}" for column, name in fields.items() if name != IGNORE]
    return ", ".join(shown)


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())
