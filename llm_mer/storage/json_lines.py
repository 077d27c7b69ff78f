"""Reading JSON Lines files that this program wrote, as strictly as files from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.json_text import parse_json


def read_json_lines(path: Path, note: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """``(file:line, object)`` of every line; only line feeds end a line, and one line is in memory at a time.

    Args:
        note: follows ``file:line`` in every message, e.g. ``": damaged"``.

    Raises:
        UserError: naming file and line: not UTF-8, as :func:`~llm_mer.storage.json_text.parse_json`, or not an object.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}:{number}"
            yield where, parse_json_object(line, f"{where}{note}")


def parse_json_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse the object of one line. Raises :class:`UserError` as :func:`read_json_lines`."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from None
    entry = parse_json(text, where)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: not a JSON object but {type(entry).__name__}")
    return entry
