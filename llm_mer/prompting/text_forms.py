"""Texts that look alike and are not the same: letter case, full and half width, Unicode forms, characters nobody sees."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Invisible characters that belong to words and emoji."""


def is_invisible(character: str) -> bool:
    """White space, a control or format character (zero width, byte order mark), or one that is not assigned."""
    return character.isspace() or unicodedata.category(character)[0] == "C"


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen; an empty one is blank."""
    return all(map(is_invisible, text))


def has_hidden_characters(text: str) -> bool:
    """Whether a text holds format characters (zero width spaces, byte order marks) other than joiners."""
    return not text.isascii() and any(c not in JOINERS and unicodedata.category(c) == "Cf" for c in text)


def plain_form(text: str) -> str:
    """One spelling for all that look alike but for letter case: NFKC, nothing invisible but single spaces between words."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    normal = unicodedata.normalize("NFKC", text)
    return " ".join("".join(c for c in normal if c.isspace() or not is_invisible(c)).split())


def compose(name: str) -> str:
    """A name in the one form that all names are kept in: NFC, in which ``e`` with a combining accent is ``é``.

    The two forms are the same text by Unicode's own rule, look the same, and come from different keyboards and file systems.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find_alike(names: Iterable[str], fold_case: bool = False) -> tuple[str, str] | None:
    """The first two different names of one :func:`plain_form`; with ``fold_case`` letter case counts as form too."""
    known: dict[str, str] = {}
    for name in names:
        form = plain_form(name)
        other = known.setdefault(form.casefold() if fold_case else form, name)
        if other != name:
            return other, name
    return None
