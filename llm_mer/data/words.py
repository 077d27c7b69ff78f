"""Splitting transcripts into units: English words, Chinese characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

CHINESE_UNIT = re.compile(r"(?:[A-Za-z0-9]+|\w)[^\w\s]*|[^\w\s]+")


def split_words(text: str, language: str) -> list[str]:
    """Split a transcript into words; punctuation stays with the preceding word.

    English is split at white space. In Chinese every character is a word, as is every run of Latin letters or digits, as in
    the mixed error rate of speech recognition.
    """
    return CHINESE_UNIT.findall(text) if language == "zh" else text.split()


def join_words(words: Sequence[str], language: str) -> str:
    """Join words into a transcript; Chinese has spaces only between Latin words."""
    if language != "zh":
        return " ".join(words)
    text = ""
    for word in words:
        between = " " if text and text[-1].isascii() and word[0].isascii() and word[0].isalnum() else ""
        text += between + word
    return text
