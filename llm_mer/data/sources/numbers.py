"""Parsing numbers as they occur in data sets; spellings that only Python accepts are not numbers."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.prompting.tasks import NUMBER
from llm_mer.storage.quoting import quote

NON_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
MAX_INT64 = 2**63 - 1
"""Integers are stored in 64 bits."""
MAX_EXACT_INTEGER = 2**53
"""Beyond it floats cannot represent every integer."""


def parse_number(value: Any) -> float | None:
    """Parse a number as a float; None for anything else. NaN and infinity are returned; a number too large becomes infinite.

    A text is a number in decimal notation, optionally surrounded by white space: ``1_000`` (which Python would accept) and
    ``٣`` are words. Booleans are not numbers.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text) is None and NON_FINITE.fullmatch(text) is None:
            return None
        return float(text)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def parse_whole_number(value: Any) -> int | None:
    """Parse an integer of at most 64 bits; None for anything else, including ``1.5`` and floats beyond 2^53."""
    number = parse_number(value)
    if number is None or not number.is_integer():
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,25}\s*", value):
        integer = int(value.strip())  # int() does not strip all Unicode white space
    elif isinstance(value, int):
        integer = value
    elif abs(number) <= MAX_EXACT_INTEGER and (not isinstance(value, str) or Decimal(value.strip()) == number):
        integer = int(number)  # 1e-400 is not an integer, though its float is 0
    else:
        return None
    return integer if -MAX_INT64 <= integer <= MAX_INT64 else None


def whole_number(text: Any, name: str, where: str) -> int:
    """Parse an integer field. Raises ``UserError`` naming it."""
    value = parse_whole_number(text)
    if value is None:
        raise UserError(f"{where}: field {name} is {quote(text)}; it must be a whole number of at most 64 bits")
    return value


def real_number(text: Any, name: str, where: str, low: float, high: float) -> float:
    """Parse a number in [``low``, ``high``]. Raises ``UserError`` naming the field."""
    value = parse_number(text)
    if value is None or not low <= value <= high:
        raise UserError(f"{where}: field {name} is {quote(text)}; it must be a number in [{low:g}, {high:g}]")
    return value
