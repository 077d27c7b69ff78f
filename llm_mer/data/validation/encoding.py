"""Texts that are not what they are said to be: read in another encoding than their own, or in the other language."""

from __future__ import annotations

import re

_NEVER_VALID = re.compile("[\ufffd\x80-\x9f\ud800-\udfff]")
_CP1252_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_CP1252_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0xA0) if byte not in _CP1252_UNDEFINED
}
# Two-byte sequences for accented Latin letters only: É before a closing quotation mark would be valid UTF-8 too.
_UTF8_LENGTHS = {0xC2: 2, 0xC3: 2, **dict.fromkeys(range(0xE0, 0xF0), 3), **dict.fromkeys(range(0xF0, 0xF5), 4)}
_CP1252_RUN = re.compile(f"[{re.escape(''.join(sorted(_CP1252_BYTES)))}]{{2,}}")
_ACCENTED_RUN = re.compile("[\u00c0-\u00ff]{2,}")


def is_mojibake(text: str, language: str = "en") -> bool:
    """Whether a text shows signs of having been decoded with the wrong encoding.

    Signs are the replacement character, a C1 control (windows-1252 bytes decoded as Latin-1) or a lone surrogate; UTF-8
    decoded as windows-1252 (``â€™``, ``Ã©``), recognised by characters whose windows-1252 bytes are valid UTF-8; and in
    Chinese two consecutive accented Latin letters, which is GBK decoded as Latin-1 (``ÄãºÃ``).
    """
    if _NEVER_VALID.search(text):
        return True
    if text.isascii():
        return False
    for run in _CP1252_RUN.findall(text):
        for start in range(len(run) - 1):
            length = _UTF8_LENGTHS.get(_CP1252_BYTES[run[start]], 0)
            encoded = bytes(_CP1252_BYTES[character] for character in run[start : start + length])
            try:
                if length and len(encoded) == length and encoded.decode("utf-8"):
                    return True
            except UnicodeDecodeError:
                continue
    return language == "zh" and _ACCENTED_RUN.search(text) is not None


_LATIN_WORD = re.compile("[A-Za-z]+")
_CHINESE_CHARACTER = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_FOREIGN_WORDS = 3
"""Words without a Chinese character, from which on a text is not Chinese with a foreign word or two."""


def is_other_language(text: str, language: str) -> bool:
    """Whether a transcript is plainly in the other language than it is said to be.

    English with more Chinese characters than Latin words, or Chinese of three or more Latin words and no Chinese character.
    """
    latin, chinese = len(_LATIN_WORD.findall(text)), len(_CHINESE_CHARACTER.findall(text))
    return chinese > latin if language == "en" else language == "zh" and not chinese and latin >= _FOREIGN_WORDS
