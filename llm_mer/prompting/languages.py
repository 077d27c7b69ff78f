"""The languages of templates and tasks, and the rule that detects the language of a transcript."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from llm_mer.errors import UserError

LANGUAGES: tuple[str, ...] = ("en", "zh")

ENGLISH_WORDS = frozenset(
    "a an and are at be been but by can could did do does for from get go had has have he her here hers him his how i if "
    "in is it its just know let like me my no not of oh okay on one or our out right she so that the them then there they "
    "this to too up us very was we well were what when where who why will with would yeah yes you your".split()
)
"""Frequent words of English."""
OTHER_LANGUAGE_WORDS = frozenset(
    # German
    "ich du er wir ihr nicht und ist das der dem den ein eine einen mir mich dich dir sich sehr auch aber wie wenn "
    "warum nach mit von zu auf habe hast hat heute kein keine "
    # French
    "je tu il elle nous vous ils ne pas est suis sont les des une dans avec pour mais qui que quoi oui merci ce cette "
    # Spanish, Portuguese, Italian
    "yo el ella los las un una es estoy esta muy por para pero porque del con como eu voce nao muito obrigado isso "
    "io lui lei sono sei non che di della sto molto grazie perche questo questa "
    # Dutch
    "ik jij hij wij niet een het van zijn voor maar ook heel".split()
)
"""Frequent words of other languages in Latin script; none of them is a common English word."""


def script_language(text: str | None) -> str | None:
    """``en`` or ``zh`` where the script of a text shows it, otherwise None.

    Chinese characters without kana, hangul or another script are ``zh``, whatever unaccented Latin letters stand among
    them. Latin letters alone are ``en``, unless words of other languages that share them (``ich``, ``je``) outnumber
    English ones; words with accents (``fiancée``) count among those. Every other text, also one without letters, gives None.
    A foreign sentence without any of these frequent words (``Guten Morgen``) is not recognised as such: give its language.
    """
    normal = unicodedata.normalize("NFKC", text or "")
    letters = _letters(normal)
    if not letters:
        return None
    if any(_is_han(c) for c in letters):
        return "zh" if all(c.isascii() or _is_han(c) for c in letters) else None
    if not all(unicodedata.name(c, "").startswith("LATIN ") for c in letters):
        return None
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", normal).lower())
    others = sum(word in OTHER_LANGUAGE_WORDS or not word.isascii() for word in words)
    return None if others > sum(word in ENGLISH_WORDS for word in words) else "en"


def detect_language(text: str | None) -> str:
    """The language of a transcript by :func:`script_language`.

    Raises:
        UserError: the script does not show it; the message says what to write.
    """
    language = script_language(text)
    if language is None:
        shown = "there is no transcript" if text is None else f"the transcript {_shorten(text)!r} is not plainly one of them"
        raise UserError(f"language cannot be told: {shown}; give 'language', one of {', '.join(LANGUAGES)}")
    return language


def detect_corpus_language(texts: Iterable[str], where: str) -> str:
    """The language of a monolingual data set: the one that :func:`script_language` finds most often in texts with letters.

    Raises:
        UserError: no language is found in more than half of them.
    """
    counts = Counter(script_language(text) for text in texts if has_letters(text))
    language, count = max(((known, n) for known, n in counts.items() if known), key=lambda pair: pair[1], default=("", 0))
    if 2 * count <= counts.total():
        raise UserError(
            f"{where}: language cannot be told from its {counts.total()} transcripts; name it, one of {', '.join(LANGUAGES)}"
        )
    return language


def check_languages(languages: Sequence[str] | None) -> None:
    """Refuse languages to keep that are none of :data:`LANGUAGES`, or none at all; None keeps every one.

    Raises:
        UserError: naming them.
    """
    unknown = [language for language in languages or () if language not in LANGUAGES]
    if unknown or (languages is not None and not languages):
        found = ", ".join(map(repr, unknown)) or "empty"
        raise UserError(f"languages: {found}; choose from {', '.join(LANGUAGES)}, or leave it out to keep every one")


def require_language(language: str, where: str) -> str:
    """Return ``language`` if it is one of :data:`LANGUAGES`. Raises :class:`UserError` if it is empty or another."""
    if language in LANGUAGES:
        return language
    allowed = ", ".join(LANGUAGES)
    if language:
        raise UserError(f"{where}: language is {language!r}; it must be one of {allowed}")
    raise UserError(f"{where}: language is not given and there is no transcript to tell it from; give it, one of {allowed}")


def has_letters(text: str | None) -> bool:
    """Whether a text has letters of any script, by which its language could be told."""
    return bool(_letters(text or ""))


def _letters(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c).startswith("L")]


def _is_han(character: str) -> bool:
    return character == "々" or unicodedata.name(character, "").startswith("CJK ")


def _shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
