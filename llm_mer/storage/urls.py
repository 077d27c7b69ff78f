"""Distinguishing local paths from URLs."""

from __future__ import annotations

import re
from pathlib import Path

URL_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|(?:concat|concatf|subfile|data|pipe|fd|cache|crypto|async):")


def is_url(path: Path | str) -> bool:
    """Whether a string is a URL (``https://…``) or uses one of FFmpeg's protocols, rather than a local path."""
    return URL_PREFIX.match(str(path)) is not None
