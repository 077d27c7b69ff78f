"""What a user's file holds, shortened to what fits into a message of one line."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_VALUE = 100
MOST_NAMES = 12


def quote(value: object, longest: int = LONGEST_VALUE) -> str:
    """``repr`` of a value on one line, its middle left out beyond ``longest`` characters."""
    if isinstance(value, str | bytes) and len(value) > longest:
        head = repr(value[: longest // 2])
        return f"{head}… ({len(value)} {'characters' if isinstance(value, str) else 'bytes'})"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers beyond Python's own limit of digits; nesting beyond its stack
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 4 :]}"


def list_names(names: Iterable[object], most: int = MOST_NAMES) -> str:
    """Names as a list in brackets, those beyond ``most`` counted only."""
    found = list(names)
    shown = ", ".join(quote(name, 40) for name in found[:most])
    return f"[{shown}]" if len(found) <= most else f"[{shown}, … {len(found) - most} more]"
