"""From the rows of a table to utterances, with every row that cannot be used named before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.column_names import CLIP, ID_FROM_FILE, ID_FROM_ROW, ColumnNames
from llm_mer.data.sources.manifest import utterance_from_entry
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.table import IGNORE, Table
from llm_mer.features.media import media_tracks
from llm_mer.prompting.languages import LANGUAGES, has_letters, script_language
from llm_mer.storage.quoting import quote


def name_columns(table: Table, fields: dict[str, str], language: str | None) -> ColumnNames:
    """What the columns are, every column that is no field left out, and how rows without ids are named."""
    renamed = {column: name for column, name in fields.items() if name not in (IGNORE, column)}
    ignored = tuple(column for column in table.columns if fields.get(column, IGNORE) == IGNORE)
    id_from = "" if "id" in fields.values() else _name_rows(table, fields)
    return ColumnNames(renamed, ignored, id_from, language or "", cache(media_tracks))


def _name_rows(table: Table, fields: dict[str, str]) -> str:
    """By the names of the files, if every row has one and no two are alike; else by line."""
    columns = [column for wanted in (CLIP, "video", "audio") for column, name in fields.items() if name == wanted]
    files = [next((row[column] for column in columns if column in row), None) for _, row in table.rows]
    stems = {Path(str(file)).stem for file in files if file is not None}
    return ID_FROM_FILE if len(stems) == len(table.rows) else ID_FROM_ROW


def read_rows(table: Table, names: ColumnNames, labels: Sequence[str] = ()) -> list[Utterance]:
    """The utterances of a table. ``labels``: columns that are read as targets.

    Raises:
        UserError: naming file, row, field and value; of languages and files that are not there, how many rows it is.
    """
    folder = table.path.parent
    entries = [(where, names.read(row, where, folder)) for where, row in table.rows]
    _check_languages(table, [(where, entry) for where, entry in entries if "language" not in entry], names)
    found: list[Utterance] = []
    seen: dict[str, str] = {}
    for where, entry in entries:
        utterance = utterance_from_entry(entry, where, folder, labels)
        if utterance.id in seen:
            raise UserError(f"{where}: id {quote(utterance.id)} is already used at {seen[utterance.id]}")
        seen[utterance.id] = where
        found.append(utterance)
    _check_files(found, [where for where, _ in entries])
    return found


def _check_languages(table: Table, entries: Sequence[tuple[str, dict[str, object]]], names: ColumnNames) -> None:
    """Raises :class:`UserError` for transcripts in a third language, and for rows that nothing tells the language of."""
    others = [(where, str(e["text"])) for where, e in entries if has_letters(str(e.get("text", "")))]
    others = [(where, text) for where, text in others if script_language(text) is None]
    languages = ", ".join(LANGUAGES)
    if others:
        lines = ", ".join(where.rpartition(":")[2] for where, _ in others[:10]) + (", …" if len(others) > 10 else "")
        raise UserError(
            f"{others[0][0]}: the transcript {quote(others[0][1], 60)} is in none of the languages that tasks and templates "
            f"speak ({languages}); {len(others)} such {'row' if len(others) == 1 else 'rows'}: {lines}. Leave them out, or "
            f"name the language in a column language where the rule is mistaken"
        )
    modalities = {"text", "audio", "video"}  # a row without any has another mistake
    silent = [where for where, e in entries if not has_letters(str(e.get("text", ""))) and modalities & e.keys()]
    if silent and not names.language:
        raise UserError(
            f"{silent[0]}: no transcript tells the language, in {len(silent)} of {len(table.rows)} rows; say --language "
            f"{LANGUAGES[0]} for all of them, or add a column language ({languages})"
        )


def _check_files(utterances: Sequence[Utterance], places: Sequence[str]) -> None:
    missing = [
        (where, file)
        for utterance, where in zip(utterances, places, strict=True)
        for file in dict.fromkeys((utterance.vision, utterance.audio))
        if file is not None and not Path(file).is_file()
    ]
    if missing:
        where, file = missing[0]
        raise UserError(
            f"{where}: no such file {quote(file)}; {len(missing)} of {len(utterances)} rows name a file that is not there "
            "(paths are relative to the table's folder)"
        )
