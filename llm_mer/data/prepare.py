"""``llm-mer prepare``: converting the files of a public data set into a store."""

from __future__ import annotations

import inspect
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.data.missing_values import MISSING_VALUES
from llm_mer.data.sources import SOURCES, read_source
from llm_mer.data.sources.common import with_neighbours
from llm_mer.data.store import write_store
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES

OPTIONS: tuple[str, ...] = ("language", "split", "task", "media", "held_out", "missing_values")


@dataclass
class PrepareConfig:
    """Options of ``llm-mer prepare``. Those after ``output`` apply to certain formats only."""

    name: str = field(
        default="",
        metadata={"help": "format of the files", "choices": sorted(SOURCES), "required": True, "positional": True},
    )
    path: str = field(default="", metadata={"help": "the data set's file or folder", "required": True, "positional": True})
    output: str | None = field(default=None, metadata={"help": "folder of the store to write, else data/NAME"})
    language: str | None = field(
        default=None,
        metadata={"help": "language of the sentences, else inferred (mmsa, mse_adapter)", "choices": list(LANGUAGES)},
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "split of a single file whose name does not say it (mse_adapter), declare_lab or official (mosi), "
            "dialogue or published (emos)"
        },
    )
    task: str | None = field(
        default=None, metadata={"help": "task whose labels these are, where the file name does not say it (mse_adapter)"}
    )
    media: str | None = field(
        default=None,
        metadata={
            "help": "folder with the splits' folders of clips, else beside the CSV files (meld); "
            "folder with a clip an utterance (iemocap)"
        },
    )
    held_out: str | None = field(
        default=None,
        metadata={"help": "session (Session5) or speaker (Ses05F) held out as the test split, else Session5 (iemocap)"},
    )
    missing_values: str | None = field(
        default=None,
        metadata={
            "help": "zero reads NaN and infinity, which the format uses for gaps, as 0 and logs how many; else they are "
            "refused (mmsa)",
            "choices": list(MISSING_VALUES),
        },
    )
    neighbours: int = field(
        default=0,
        metadata={
            "help": "append the text features of this many neighbours on each side in the dialogue to an utterance's own "
            "(utterance-level features)"
        },
    )


def prepare(config: PrepareConfig) -> Path:
    """Read the files and write the store, one utterance in memory at a time where the format allows it.

    Returns:
        The store's folder. Features are stored as published; for a format that names media files their paths are
        stored, and ``llm-mer extract`` turns those into features.

    Raises:
        UserError: an unknown format, an option the format does not have, or files that do not follow it.
    """

    if config.name not in SOURCES:
        raise UserError(f"name is {config.name!r}; it must be one of {', '.join(sorted(SOURCES))}")
    if config.neighbours < 0:
        raise UserError(f"neighbours is {config.neighbours}; it must be at least 0")
    options: dict[str, Any] = {name: value for name in OPTIONS if (value := getattr(config, name)) is not None}
    accepted = inspect.signature(SOURCES[config.name]).parameters
    for name in options:
        if name not in accepted:
            raise UserError(f"{name}: the format {config.name} has no such option")
    utterances = read_source(config.name, Path(config.path), **options)
    if config.neighbours:
        utterances = with_neighbours(utterances, config.neighbours)
        options["neighbours"] = config.neighbours
    total = len(utterances) if isinstance(utterances, Sized) else None
    description = {"source": config.name, "path": config.path, **options}
    with track_progress(utterances, total=total, description=config.name, unit="utterance") as bar:
        try:
            return write_store(bar, Path(config.output or f"data/{config.name}"), description=description)
        except UserError as error:
            if "NaN or infinity" in str(error) and "missing_values" in accepted:
                raise UserError(f"{error}; --missing_values zero reads the format's gaps as 0") from None
            raise
