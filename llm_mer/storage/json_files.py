"""JSON files that this program wrote, read with one line for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.json_text import parse_json


def read_json(path: Path, missing: str | None = None) -> Any:
    """The value of a JSON file.

    Args:
        missing: the message where there is no such file.

    Raises:
        UserError: no file, not UTF-8, not JSON, a key given twice in an object, or nested too deeply.
    """
    if not path.is_file():
        raise UserError(missing or f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged or cut off, not JSON: {error}") from None
    # Other libraries' files (trainer_state.json) hold NaN where a number is not known.
    try:
        return parse_json(text, str(path), finite=False)
    except UserError as error:
        raise UserError(f"{path}: damaged or cut off, {str(error).removeprefix(f'{path}: ')}") from None


def read_json_object(path: Path, missing: str | None = None) -> dict[str, Any]:
    """The object of a JSON file. Raises :class:`UserError` as :func:`read_json`, and for any other value."""
    value = read_json(path, missing)
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, holds {type(value).__name__} in place of an object")
    return value
