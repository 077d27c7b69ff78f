"""Numbers as people and programs write them into data sets, and nothing that only Python takes for one."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
MAX_INT64 = 2**63 - 1
"""Whole numbers are stored in 64 bits."""
MAX_EXACT_INTEGER = 2**53
"""Beyond it a float no longer tells one whole number from the next."""


def parse_number(value: Any) -> float | None:
    """A number as a float; None for what is none. NaN and infinity come back as they are, and so does too large a number.

    A text is a number in decimal notation, with white space around it: ``1_000`` is a word (Python would read 1000), and so
    is ``٣``. A truth value is no number.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, str):
        text = value.strip()
        if DECIMAL.fullmatch(text) is None and NO_NUMBER.fullmatch(text) is None:
            return None
        return float(text)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None


def parse_whole_number(value: Any) -> int | None:
    """A whole number of at most 64 bits; None for everything else, ``1.5`` and a float beyond 2^53 included."""
    number = parse_number(value)
    if number is None or not number.is_integer():
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,25}\s*", value):
        whole = int(value.strip())  # int alone does not strip all that a text counts as white space
    elif isinstance(value, int):
        whole = value
    elif abs(number) <= MAX_EXACT_INTEGER and (not isinstance(value, str) or Decimal(value.strip()) == number):
        whole = int(number)  # 1e-400 is no whole number, though its float is 0
    else:
        return None
    return whole if -MAX_INT64 <= whole <= MAX_INT64 else None


def whole_number(text: Any, name: str, where: str) -> int:
    """A field that counts. Raises ``UserError`` naming it."""
    value = parse_whole_number(text)
    if value is None:
        raise UserError(f"{where}: field {name} is {quote(text)}; it must be a whole number of at most 64 bits")
    return value


def real_number(text: Any, name: str, where: str, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``. Raises ``UserError`` naming the field."""
    value = parse_number(text)
    if value is None or not low <= value <= high:
        raise UserError(f"{where}: field {name} is {quote(text)}; it must be a number in [{low:g}, {high:g}]")
    return value
