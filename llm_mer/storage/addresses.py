"""Telling the path of a file from an address."""

from __future__ import annotations

import re
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|(?:concat|concatf|subfile|data|pipe|fd|cache|crypto|async):")


def is_address(path: Path | str) -> bool:
    """Whether a path is an address (``https://…``) or names a protocol of FFmpeg's, rather than a file."""
    return ADDRESS.match(str(path)) is not None
