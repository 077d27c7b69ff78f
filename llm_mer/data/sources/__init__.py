"""One module per public format; each yields :class:`llm_mer.data.schema.Utterance`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import read_manifest
from llm_mer.data.sources.mosi import read_mosi

Reader = Callable[..., Iterable[Utterance]]

SOURCES: dict[str, Reader] = {
    "manifest": read_manifest,
    "mosi": read_mosi,
}
"""Format name → ``read(path, **options)``, as in ``--data mosi:FOLDER``."""


def read_source(name: str, path: Path, **options: Any) -> Iterable[Utterance]:
    """Read a public format by name."""
    return SOURCES[name](path, **options)
