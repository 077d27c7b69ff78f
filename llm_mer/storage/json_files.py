"""Reading JSON files that this program wrote; whatever is wrong with one is reported in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.json_text import parse_json


def read_json(path: Path, missing: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        missing: the error message if the file does not exist.

    Raises:
        UserError: no such file, not UTF-8, not JSON, a duplicate key in an object, or nested too deeply.
    """
    if not path.is_file():
        raise UserError(missing or f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged or cut off, not JSON: {error}") from None
    # Files of other libraries (trainer_state.json) may hold NaN for an unknown number.
    try:
        return parse_json(text, str(path), finite=False)
    except UserError as error:
        raise UserError(f"{path}: damaged or cut off, {str(error).removeprefix(f'{path}: ')}") from None


def read_json_object(path: Path, missing: str | None = None) -> dict[str, Any]:
    """Read a JSON object from a file. Raises :class:`UserError` as :func:`read_json`, and for any other value."""
    value = read_json(path, missing)
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, holds {type(value).__name__} instead of an object")
    return value
