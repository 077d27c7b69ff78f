"""Strict JSON parsing: input that Python's parser would silently misread is refused.

Python's parser keeps the last of two values under one key, accepts ``NaN`` as a number, turns 400 digits into an integer
that no float can hold, and raises ``RecursionError`` on deeply nested brackets. Each is refused here with a one-line
message.
"""

from __future__ import annotations

import json
import math
from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

MAX_DIGITS = 300
"""Most digits of an integer; longer ones may overflow a float."""


def _object_hook(where: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicate = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise UserError(f"{where}: key {quote(duplicate)} occurs twice; it is unclear which value is meant")
        return found

    return build


def _int_hook(where: str) -> Any:
    def build(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise UserError(f"{where}: a number of {len(text)} digits; at most {MAX_DIGITS} are read")
        return int(text)

    return build


def _float_hook(where: str) -> Any:
    def build(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise UserError(f"{where}: the number {quote(text)} is too large; it must be finite")
        return value

    return build


def _constant_hook(where: str) -> Any:
    def build(text: str) -> float:
        raise UserError(f"{where}: {text} is not JSON; a number must be finite, and a missing one is null or left out")

    return build


def parse_json(text: str, where: str, finite: bool = True) -> Any:
    """Parse a JSON text.

    Args:
        finite: refuse ``NaN``, ``Infinity`` and numbers beyond float64; otherwise they are returned, for a caller that
            can name the field.

    Raises:
        UserError: naming ``where`` for text that is not JSON, a duplicate key in an object, a number that is not finite or
            has more than :data:`MAX_DIGITS` digits, and nesting beyond the recursion limit.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_hook(where),
            parse_int=_int_hook(where),
            parse_float=_float_hook(where) if finite else float,
            parse_constant=_constant_hook(where) if finite else float,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: brackets are nested too deeply to be read") from None


def dump_json(value: Any, indent: int | None = None) -> str:
    """Serialise plain values as JSON; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_known(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _known(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(part) for part in value]
    return value
