"""Finding texts that look alike but differ in letter case, width, Unicode form or invisible characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Invisible characters that belong to words and emoji."""


def is_invisible(character: str) -> bool:
    """Whether a character is white space, a control or format character (zero width, byte order mark), or unassigned."""
    return character.isspace() or unicodedata.category(character)[0] == "C"


def is_blank(text: str) -> bool:
    """Whether a text has no visible characters; an empty one is blank."""
    return all(map(is_invisible, text))


def has_hidden_characters(text: str) -> bool:
    """Whether a text holds format characters (zero width spaces, byte order marks) other than joiners."""
    return not text.isascii() and any(c not in JOINERS and unicodedata.category(c) == "Cf" for c in text)


def canonical_form(text: str) -> str:
    """Normalise to NFKC without invisible characters and with single spaces, so that lookalikes compare equal."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    normal = unicodedata.normalize("NFKC", text)
    return " ".join("".join(c for c in normal if c.isspace() or not is_invisible(c)).split())


def compose(name: str) -> str:
    """A name in NFC, the form that all names are kept in: ``e`` with a combining accent becomes ``é``.

    The two forms are canonically equivalent, look the same, and come from different keyboards and file systems.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find_lookalikes(names: Iterable[str], fold_case: bool = False) -> tuple[str, str] | None:
    """The first two different names of one :func:`canonical_form`; with ``fold_case`` letter case is ignored too."""
    known: dict[str, str] = {}
    for name in names:
        form = canonical_form(name)
        other = known.setdefault(form.casefold() if fold_case else form, name)
        if other != name:
            return other, name
    return None
