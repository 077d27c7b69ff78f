"""Texts that were once read in another encoding than their own."""

from __future__ import annotations

import re

_NEVER = re.compile("[\ufffd\x80-\x9f\ud800-\udfff]")
_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_WINDOWS = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0xA0) if byte not in _UNDEFINED
}
# Of two bytes, accented Latin letters only: a capital É before a closing quotation mark would be UTF-8 as well.
_LENGTHS = {0xC2: 2, 0xC3: 2, **dict.fromkeys(range(0xE0, 0xF0), 3), **dict.fromkeys(range(0xF0, 0xF5), 4)}
_RUN = re.compile(f"[{re.escape(''.join(sorted(_WINDOWS)))}]{{2,}}")
_LATIN = re.compile("[\u00c0-\u00ff]{2,}")


def is_mojibake(text: str, language: str = "en") -> bool:
    """Whether a text shows that it was once read in another encoding than its own.

    The replacement character, a C1 control (bytes of windows-1252 taken for Latin-1) or half a surrogate pair; UTF-8 read
    as windows-1252 (``â€™``, ``Ã©``), told by characters that, as bytes of windows-1252, are UTF-8; and in Chinese two
    accented Latin letters in a row, which is GBK read as Latin-1 (``ÄãºÃ``).
    """
    if _NEVER.search(text):
        return True
    if text.isascii():
        return False
    for run in _RUN.findall(text):
        for start in range(len(run) - 1):
            length = _LENGTHS.get(_WINDOWS[run[start]], 0)
            piece = bytes(_WINDOWS[character] for character in run[start : start + length])
            try:
                if length and len(piece) == length and piece.decode("utf-8"):
                    return True
            except UnicodeDecodeError:
                continue
    return language == "zh" and _LATIN.search(text) is not None
