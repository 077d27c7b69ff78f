"""Reading utterances from a store, or from files of a public format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_mer.data.schema import Utterance
from llm_mer.data.sources import read_source, split_source
from llm_mer.data.store import UtteranceFingerprint, UtteranceStore
from llm_mer.errors import UserError


def read_utterances(source: str) -> tuple[dict[str, Sequence[Utterance]], dict[str, Any], str]:
    """Open a store or read ``FORMAT:PATH``; returns utterances by split, a description and a fingerprint."""
    if not source:
        raise UserError("data: name a store (from `llm-mer extract`) or FORMAT:PATH")
    public = split_source(source)
    if public is not None:
        splits: dict[str, list[Utterance]] = {}
        fingerprint = UtteranceFingerprint()
        for utterance in read_source(*public):
            splits.setdefault(utterance.split, []).append(utterance)
            fingerprint.update(utterance)
        return dict(splits), {"source": public[0]}, fingerprint.hexdigest()
    store = UtteranceStore.open(source)
    tables: dict[str, Sequence[Utterance]] = {split: store.split(split) for split in store.info.counts}
    return tables, store.info.description, store.info.fingerprint


def load_dataset(source: str | Path) -> dict[str, Sequence[Utterance]]:
    """Load the utterances of a store or of ``FORMAT:PATH`` by split, e.g. ``load_dataset("data/clips")["test"]``.

    A store is memory-mapped: its utterances are read on access.

    Raises:
        UserError: not a store, or files that do not follow the format.
    """
    if not isinstance(source, str | Path):
        raise UserError(f"data: {source!r} is no folder; name a store (from `llm-mer extract`) or FORMAT:PATH")
    return read_utterances(str(source))[0]


def find_split(splits: Mapping[str, Sequence[Utterance]], name: str, source: str) -> Sequence[Utterance]:
    """The split of this name. Raises :class:`UserError` naming the splits of ``source``."""
    if name not in splits:
        raise UserError(f"{source}: no split {name!r}; it holds {', '.join(sorted(splits))}")
    return splits[name]
