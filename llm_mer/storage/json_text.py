"""JSON of other people's making, read as they mean it or not at all.

Python's reader keeps the last of two values under one key, takes ``NaN`` for a number, answers 400 digits with an integer
that no float holds, and ends with ``RecursionError`` on nested brackets. Each is refused here in one line.
"""

from __future__ import annotations

import json
import math
from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

MOST_DIGITS = 300
"""Digits of a whole number: one more digit than this may be infinite as a float."""


def _pairs(where: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise UserError(f"{where}: key {quote(twice)} stands there twice; which value holds is not known")
        return found

    return build


def _whole(where: str) -> Any:
    def build(text: str) -> int:
        if len(text) > MOST_DIGITS:
            raise UserError(f"{where}: a number of {len(text)} digits; at most {MOST_DIGITS} are read")
        return int(text)

    return build


def _real(where: str) -> Any:
    def build(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise UserError(f"{where}: the number {quote(text)} is too large; it must be finite")
        return value

    return build


def _constant(where: str) -> Any:
    def build(text: str) -> float:
        raise UserError(f"{where}: {text} is not JSON; a number must be finite, and a missing one is null or left out")

    return build


def parse_json(text: str, where: str, finite: bool = True) -> Any:
    """What a JSON text holds.

    Args:
        finite: refuse ``NaN``, ``Infinity`` and numbers beyond float64 here; otherwise they come back as they are, for a
            caller that can name the field.

    Raises:
        UserError: naming ``where`` for text that is not JSON, a key given twice in one object, a number that is not finite
            or has more than :data:`MOST_DIGITS` digits, and nesting beyond what Python's reader can follow.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_pairs(where),
            parse_int=_whole(where),
            parse_float=_real(where) if finite else float,
            parse_constant=_constant(where) if finite else float,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: brackets are nested too deeply to be read") from None


def dump_json(value: Any, indent: int | None = None) -> str:
    """The JSON text of plain values; a number that is NaN or infinite, which JSON does not have, is null: not known."""
    return json.dumps(_known(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _known(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(part) for part in value]
    return value
