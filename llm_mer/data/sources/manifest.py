"""Reading and writing manifests of users' own clips (JSONL or CSV)."""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from llm_mer.data.fold_rules import SESSION_TAG
from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.sources.column_names import ColumnNames
from llm_mer.data.sources.csv_rows import DELIMITERS, check_columns, detect_delimiter, read_rows
from llm_mer.data.sources.numbers import MAX_EXACT_INTEGER, parse_number, parse_whole_number
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES, detect_language, has_letters
from llm_mer.prompting.tasks import builtin_tasks
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.json_text import parse_json
from llm_mer.storage.quoting import list_names, quote
from llm_mer.storage.urls import is_url

MAX_LINE_LENGTH = 16 << 20
"""Bytes per line."""
FIELDS: tuple[str, ...] = (
    "id",
    "split",
    "language",
    "text",
    "audio",
    "video",
    "dialogue_id",
    "turn",
    "speaker",
    "session",
    "tags",
    "votes",
    "annotators",
)


def label_fields() -> tuple[str, ...]:
    """Columns that are targets of built-in tasks: ``emotion``, ``sentiment``, ``polarity``, …"""
    return tuple(dict.fromkeys(task.target for task in builtin_tasks().values()))


def has_lone_surrogate(text: str) -> bool:
    """Whether a text contains a lone surrogate, which cannot be encoded as UTF-8."""
    return any("\ud800" <= c <= "\udfff" for c in text)


TABLES = (".csv", ".tsv")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def manifest_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """``(file:line, entry)`` of each row of a manifest, and an error instead of one that cannot be read.

    Raises:
        UserError: a file that is not there, has another suffix, is not UTF-8, or a header that cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    if path.suffix not in (".jsonl", *TABLES):
        raise UserError(f"{path}: a manifest is a .jsonl or .csv file (.tsv with tabs)")
    try:
        yield from _rows(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}; {_encoding_remedy(path)}") from None


def _encoding_remedy(path: Path) -> str:
    """What to do about a table in another encoding, naming the one that its first bytes show."""
    with path.open("rb") as stream:
        head = stream.read(2)
    encoding = "UTF-16" if head in UTF16_MARKS else "GBK"
    note = "" if encoding == "UTF-16" else " (if its encoding is GBK)"
    return f"save it as UTF-8 (in Excel: CSV UTF-8), or convert it: iconv -f {encoding} -t UTF-8 {path.name} > new.csv{note}"


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    if path.suffix in TABLES:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = detect_delimiter(stream.readline(MAX_LINE_LENGTH), path)
            stream.seek(0)
            yield from _csv_entries(stream, path, delimiter)
        return
    with path.open("rb") as binary:
        if not binary.readline(MAX_LINE_LENGTH).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            _check_encoding(path)  # if the first line is not JSON, the encoding may be wrong
        binary.seek(0)
        yield from json_entries(binary, str(path))


def _check_encoding(path: Path) -> None:
    """Raises :class:`UserError` if the beginning of a file is not UTF-8."""
    with path.open("rb") as stream:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(stream.read(1 << 20))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text: {error}") from None


def json_entries(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """``(name:line, entry)`` of each non-empty line of JSON, and an error instead of an entry that cannot be read.

    A line that is not UTF-8 is such an error, and one beyond :data:`MAX_LINE_LENGTH` bytes is skipped in bounded memory.
    """
    number = 0
    while line := stream.readline(MAX_LINE_LENGTH + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > MAX_LINE_LENGTH:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_LENGTH)
            yield where, UserError(f"{where}: more than {MAX_LINE_LENGTH} bytes; a line is one utterance")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield where, parse_json_line(text, where)
        except UnicodeDecodeError as error:
            yield where, UserError(f"{where}: not UTF-8 text: {error}")
        except UserError as error:
            yield where, error


def _csv_entries(stream: IO[str], path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    rows = read_rows(stream, path, delimiter)
    _, columns = next(rows, ("", []))
    if isinstance(columns, UserError):
        raise columns
    check_columns(columns, path)
    for where, cells in rows:
        if isinstance(cells, UserError):
            yield where, cells
        elif len(cells) > len(columns):
            yield where, UserError(f"{where}: more cells than columns; quote texts that contain {DELIMITERS[delimiter]}")
        elif cells:
            yield where, {name: cell for name, cell in zip(columns, cells, strict=False) if cell != ""}


def parse_json_line(line: str, where: str) -> dict[str, Any]:
    """Parse one JSONL line into a mapping without nulls.

    Raises:
        UserError: as :func:`~llm_mer.storage.json_text.parse_json`; numbers that are not finite are checked later, by field.
    """
    entry = parse_json(line.rstrip("\r\n"), where, finite=False)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a manifest line is a JSON object, found {type(entry).__name__}")
    return {k: v for k, v in entry.items() if v is not None}


def utterance_from_entry(entry: dict[str, Any], where: str, folder: Path, extra_labels: Iterable[str] = ()) -> Utterance:
    """Check one manifest entry and make it an utterance. Media paths are relative to ``folder``.

    Raises:
        UserError: naming location, field, the value found and valid values.
    """
    labels_known = tuple(dict.fromkeys((*label_fields(), *map(compose, extra_labels))))
    composed = {compose(name): value for name, value in entry.items()}
    if len(composed) < len(entry):
        raise UserError(f"{where}: a field occurs twice, in two Unicode forms: {list_names(sorted(entry))}")
    entry = composed
    _check_field_names(entry, where, labels_known)
    _check_texts(entry, where)
    _check_names_and_paths(entry, where)
    for name, allowed in (("split", SPLITS), ("language", LANGUAGES)):
        if name in entry and str(entry[name]) not in allowed:
            value = str(entry[name])
            raise UserError(f"{where}: field {name!r} is {quote(value)}; it must be one of {', '.join(allowed)}")
    turn, tags = _turn(entry, where), (*_tags(entry, where), *_session(entry, where))
    media = {name: str(folder / str(entry[name])) if name in entry else None for name in ("audio", "video")}
    return Utterance(
        id=_name(entry["id"]),
        split=str(entry.get("split", "test")),
        language=_language(entry, where),
        text=entry.get("text"),
        audio=media["audio"],
        vision=media["video"],
        labels={name: _label(entry[name], name, where) for name in labels_known if name in entry},
        dialogue_id=_name(entry["dialogue_id"]) if "dialogue_id" in entry else None,
        turn=turn,
        speaker=_name(entry["speaker"]) if "speaker" in entry else None,
        tags=tags,
        votes=_votes(entry, where, labels_known),
    )


def _check_field_names(entry: dict[str, Any], where: str, labels_known: Sequence[str]) -> None:
    unknown = sorted(set(entry) - set(FIELDS) - set(labels_known))
    if unknown:
        raise UserError(f"{where}: unknown fields {list_names(unknown)}; known are {', '.join((*FIELDS, *labels_known))}")
    if "id" not in entry:
        raise UserError(f"{where}: no field 'id'")
    if not any(key in entry for key in ("text", "audio", "video")):
        raise UserError(f"{where}: give at least one of text, audio, video")


def _check_texts(entry: dict[str, Any], where: str) -> None:
    """Text fields must be strings, and strings must be valid Unicode without NUL."""
    for name in ("text", "audio", "video"):
        if name in entry and not isinstance(entry[name], str):
            raise UserError(f"{where}: field {name!r} is {quote(entry[name])}; it must be a string")
    for name, value in entry.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(part, str) and has_lone_surrogate(part) for part in texts):
            raise UserError(f"{where}: field {name!r} is {quote(value)}: a lone surrogate is not valid Unicode")
        if any(isinstance(part, str) and "\0" in part for part in texts):
            raise UserError(
                f"{where}: field {name!r} is {quote(value)}: it contains a NUL character; save the file as UTF-8"
            )


def _check_names_and_paths(entry: dict[str, Any], where: str) -> None:
    for name in ("id", "dialogue_id", "speaker", "session"):
        value = entry.get(name, "-")
        non_finite = isinstance(value, float) and not math.isfinite(value)
        if value == "" or non_finite or isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{where}: field {name!r} is {quote(value)}; it must be a text or a number")
    for name in ("audio", "video"):
        if entry.get(name) == "":
            raise UserError(f"{where}: field {name!r} is ''; it must be the path of a file")
        if is_url(str(entry.get(name, ""))):
            raise UserError(f"{where}: field {name!r} is {quote(entry[name])}, a URL; it must be the path of a file")


def _turn(entry: dict[str, Any], where: str) -> int | None:
    if "turn" not in entry:
        return None
    turn = parse_whole_number(entry["turn"])
    if turn is None:
        raise UserError(f"{where}: field 'turn' is {quote(entry['turn'])}; it must be a whole number of at most 64 bits")
    return turn


def _tags(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    tags = entry.get("tags", [])
    if isinstance(tags, str):
        tags = [tag for part in tags.split(";") if (tag := part.strip())]
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{where}: field 'tags' is {quote(tags)}; it must be a list of words (in CSV, split by semicolons)")
    return tuple(tags)


def _session(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    """The tag of a field ``session``, which folds are made by."""
    if "session" not in entry:
        return ()
    if any(tag.startswith(SESSION_TAG) for tag in _tags(entry, where)):
        raise UserError(f"{where}: the session is given twice, by the field 'session' and by a tag {SESSION_TAG}…")
    return (SESSION_TAG + _name(entry["session"]),)


def _language(entry: dict[str, Any], where: str) -> str:
    """The language given, else the one detected in the transcript; empty without either."""
    language, text = str(entry.get("language", "")), entry.get("text")
    if language or not has_letters(text):
        return language
    try:
        return detect_language(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _votes(entry: dict[str, Any], where: str, targets: Iterable[str]) -> dict[str, Votes]:
    """``{"votes": {target: {label: count}}, "annotators": A}`` of an entry; in CSV, ``votes`` is the same JSON in a cell."""
    value = entry.get("votes", {})
    if isinstance(value, str):
        value = parse_json(value, f"{where}: field 'votes'")
    if not isinstance(value, dict) or ("votes" in entry and not value):
        raise UserError(f"{where}: field 'votes' is {quote(value)}; it must be {{target: {{label: count}}}}")
    annotators = entry.get("annotators")
    if annotators is not None:
        if not value:
            raise UserError(f"{where}: field 'annotators' has no effect without 'votes'")
        annotators = parse_whole_number(annotators)
        if annotators is None:
            raise UserError(f"{where}: field 'annotators' is {quote(entry['annotators'])}; it must be a whole number")
    found = {}
    for target, counts in value.items():
        if compose(target) not in targets:
            raise UserError(f"{where}: field 'votes' has target {quote(target)}; known are {list_names(list(targets))}")
        if isinstance(counts, dict) and any(has_lone_surrogate(label) or "\0" in label for label in counts):
            raise UserError(f"{where}: field 'votes' is {quote(counts)}: it contains a lone surrogate or a NUL character")
        found[target] = Votes(counts, annotators)
        found[target].check(f"{where}: votes of {target!r}")
    return found


def _name(value: str | float) -> str:
    """A text as it stands; of a number, the number it is: a table writes 1 as 1.0 where another row has none."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        return str(int(value))
    return str(value)


def _label(value: Any, name: str, where: str) -> str | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: field {name!r} is {quote(value)}; it must be a word or a number")
    number = parse_number(value)
    if number is None:
        return str(value)
    if not math.isfinite(number):
        raise UserError(f"{where}: field {name!r} is {quote(value)}; it must be a word or a finite number")
    return number


def read_manifest(
    path: Path | str, extra_labels: Iterable[str] = (), refused: list[tuple[str, str]] | None = None
) -> list[Utterance]:
    """The utterances of :func:`stream_manifest`, all at once."""
    return list(stream_manifest(path, extra_labels, refused))


def stream_manifest(
    path: Path | str,
    extra_labels: Iterable[str] = (),
    refused: list[tuple[str, str]] | None = None,
    columns: ColumnNames | None = None,
) -> Iterator[Utterance]:
    """Read a manifest (``.jsonl``; ``.csv`` or ``.tsv`` by commas, semicolons or tabs), one entry in memory at a time.

    Args:
        extra_labels: columns beyond the built-in targets that are labels of custom tasks.
        refused: collects ``(file:line, message)`` of entries that cannot be used; without it the first one is raised.
        columns: what the columns of a user's own table mean, where that is known.

    Raises:
        UserError: a file that is not a manifest, or an entry that cannot be used (with ``refused``: if none can be used).
    """
    path = Path(path)
    seen: dict[str, str] = {}
    for where, entry in manifest_rows(path):
        try:
            if isinstance(entry, UserError):
                raise entry
            if columns is not None:
                entry = columns.read(entry, where, path.parent)
            utterance = utterance_from_entry(entry, where, path.parent, tuple(extra_labels))
            if utterance.id in seen:
                raise UserError(f"{where}: id {quote(utterance.id)} is already used at {seen[utterance.id]}")
        except UserError as error:
            if refused is None:
                raise
            refused.append((where, str(error)))
            continue
        seen[utterance.id] = where
        yield utterance
    if not seen:
        raise UserError(refused[0][1] if refused else f"{path}: the manifest is empty")


def write_manifest(utterances: Iterable[Utterance], path: Path | str) -> Path:
    """Write utterances as JSONL, media paths relative to the manifest's folder."""
    path = Path(path)
    with path.open("w", encoding="utf-8") as stream:
        for utterance in utterances:
            entry: dict[str, Any] = {"id": utterance.id, "split": utterance.split, "language": utterance.language}
            for name, media in (("audio", utterance.audio), ("video", utterance.vision)):
                if media is not None:
                    entry[name] = os.path.relpath(media, path.parent)
            for name in ("text", "dialogue_id", "turn", "speaker"):
                if getattr(utterance, name) is not None:
                    entry[name] = getattr(utterance, name)
            entry.update(utterance.labels)
            entry.update(_votes_entry(utterance))
            if utterance.tags:
                entry["tags"] = list(utterance.tags)
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return path


def _votes_entry(utterance: Utterance) -> dict[str, Any]:
    if not utterance.votes:
        return {}
    annotators = {votes.annotators for votes in utterance.votes.values()}
    if len(annotators) > 1:
        raise UserError(f"utterance {utterance.id!r}: its votes have {annotators} annotators; a manifest says one number")
    entry: dict[str, Any] = {"votes": {target: votes.to_dict()["counts"] for target, votes in utterance.votes.items()}}
    return entry if annotators == {None} else {**entry, "annotators": annotators.pop()}
