"""Reading utterances from a store, or from files of a public format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_mer.data.folds import Folds, fold_fingerprint, select_fold
from llm_mer.data.schema import Utterance
from llm_mer.data.sources import read_source, split_source
from llm_mer.data.store import UtteranceFingerprint, UtteranceStore
from llm_mer.errors import UserError


def read_utterances(
    source: str, folds: str | None = None, fold: str | None = None
) -> tuple[dict[str, Sequence[Utterance]], dict[str, Any], str]:
    """Open a store or read ``FORMAT:PATH``; returns utterances by split, a description and a fingerprint.

    Args:
        folds, fold: a file of folds and the name of one, whose parts take the place of the splits that the data have.

    Raises:
        UserError: not a store, files that do not follow the format, or folds of other data.
    """
    splits, description, fingerprint = _read_source(source)
    if folds is None or fold is None:
        return splits, description, fingerprint
    chosen = Folds.load(Path(folds)).fold(fold, folds)
    parts: dict[str, Sequence[Utterance]] = dict(select_fold(splits, chosen, folds))
    own = fold_fingerprint(fingerprint, chosen)
    return parts, {**description, "fold": {"name": fold, "data": fingerprint}}, own


def _read_source(source: str) -> tuple[dict[str, Sequence[Utterance]], dict[str, Any], str]:
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
