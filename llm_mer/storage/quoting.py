"""Shortening values from users' files so that they fit into a one-line message."""

from __future__ import annotations

from collections.abc import Iterable

MAX_VALUE_CHARACTERS = 100
MAX_NAMES = 12


def quote(value: object, max_length: int = MAX_VALUE_CHARACTERS) -> str:
    """``repr`` of a value on one line, the middle left out beyond ``max_length`` characters."""
    if isinstance(value, str | bytes) and len(value) > max_length:
        head = repr(value[: max_length // 2])
        return f"{head}… ({len(value)} {'characters' if isinstance(value, str) else 'bytes'})"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers beyond Python's digit limit; nesting beyond its stack
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= max_length else f"{text[: max_length // 2]}…{text[-max_length // 4 :]}"


def list_names(names: Iterable[object], max_names: int = MAX_NAMES) -> str:
    """Names as a bracketed list; those beyond ``max_names`` are only counted."""
    items = list(names)
    shown = ", ".join(quote(name, 40) for name in items[:max_names])
    return f"[{shown}]" if len(items) <= max_names else f"[{shown}, … {len(items) - max_names} more]"
