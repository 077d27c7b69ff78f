"""Readers of public data formats, one module each; every reader yields :class:`llm_mer.data.schema.Utterance`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.casia import read_casia
from llm_mer.data.sources.cped import read_cped
from llm_mer.data.sources.emos import read_emos
from llm_mer.data.sources.iemocap import read_iemocap
from llm_mer.data.sources.joined import read_joined
from llm_mer.data.sources.manifest import stream_manifest
from llm_mer.data.sources.meld import read_meld
from llm_mer.data.sources.mmsa import read_mmsa
from llm_mer.data.sources.mosi import read_mosi
from llm_mer.data.sources.mosi_csv import read_mosi_csv
from llm_mer.data.sources.mse_adapter import read_mse_adapter
from llm_mer.data.sources.ravdess import read_ravdess
from llm_mer.errors import UserError

Reader = Callable[..., Iterable[Utterance]]

SOURCES: dict[str, Reader] = {
    "manifest": stream_manifest,
    "mosi": read_mosi,
    "mosi_csv": read_mosi_csv,
    "mmsa": read_mmsa,
    "mse_adapter": read_mse_adapter,
    "meld": read_meld,
    "iemocap": read_iemocap,
    "cped": read_cped,
    "casia": read_casia,
    "emos": read_emos,
    "ravdess": read_ravdess,
    "joined": read_joined,
}
"""Format name → ``read(path, **options)``, as in ``--data mosi:FOLDER``."""


def split_source(source: str, option: str = "data") -> tuple[str, Path] | None:
    """``FORMAT:PATH`` as format and path; None for a path alone.

    Raises:
        UserError: naming ``option``, if the text before the colon is not a format and no such path exists.
    """
    name, separator, path = source.partition(":")
    if separator and name in SOURCES:
        return name, Path(path)
    if separator and not Path(source).exists():
        raise UserError(f"{option}: unknown format {name!r}; choose from {', '.join(sorted(SOURCES))}")
    return None


def read_source(name: str, path: Path, **options: Any) -> Iterable[Utterance]:
    """Read a public format by name."""
    return SOURCES[name](path, **options)
