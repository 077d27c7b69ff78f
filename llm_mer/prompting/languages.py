"""The languages that the templates and the tasks speak."""

from __future__ import annotations

LANGUAGES: tuple[str, ...] = ("en", "zh")
