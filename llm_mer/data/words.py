"""The units a transcript is counted in: words of English, characters of Chinese."""

from __future__ import annotations

import re
from collections.abc import Sequence

CHINESE_UNIT = re.compile(r"(?:[A-Za-z0-9]+|\w)[^\w\s]*|[^\w\s]+")


def split_words(text: str, language: str) -> list[str]:
    """Words of a transcript, punctuation staying with the word before it.

    English is split at white space. In Chinese every character is a word, and so is a run of Latin letters or digits, as
    in the mixed error rate of speech recognition.
    """
    return CHINESE_UNIT.findall(text) if language == "zh" else text.split()


def join_words(words: Sequence[str], language: str) -> str:
    """A transcript of these words; Chinese has a space only between two Latin ones."""
    if language != "zh":
        return " ".join(words)
    text = ""
    for word in words:
        between = " " if text and text[-1].isascii() and word[0].isascii() and word[0].isalnum() else ""
        text += between + word
    return text
