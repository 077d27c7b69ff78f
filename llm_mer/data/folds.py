"""Folds: which utterances are trained on, which choose the epoch, and which are tested, in a file that others can use.

The file is JSON, ``{"folds": [{"name": …, "train": [ids], "valid": [ids], "test": [ids]}, …]}``, beside what made it. With
it a store or ``FORMAT:PATH`` is read fold by fold: the parts take the place of the splits that the data have.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.errors import UserError
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.fingerprints import json_sha256
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.quoting import list_names, quote

FOLDS_FILE = "folds.json"


@dataclass(frozen=True)
class Fold:
    """Ids of the utterances of each part; no id is in two of them."""

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """``{"train": ids, "valid": ids, "test": ids}``."""
        return {split: getattr(self, split) for split in SPLITS}


@dataclass(frozen=True)
class Folds:
    """The folds of a data set. Each utterance is tested in one fold at most.

    Attributes:
        by: what the folds keep together: ``session``, ``speaker``, ``dialogue`` or ``utterance``; ``file`` where others made
            them and do not say.
        validation_by, validation, seed: what validation keeps together, its share of the training part, and the seed it and
            the folds were drawn with; None where others made them.
        data: fingerprint of the utterances they were made of, None where others made them.
    """

    folds: tuple[Fold, ...]
    by: str = "file"
    validation_by: str | None = None
    validation: float | None = None
    seed: int | None = None
    data: str | None = None

    @property
    def names(self) -> list[str]:
        """Of the folds, in order."""
        return [fold.name for fold in self.folds]

    def fold(self, name: str, where: str) -> Fold:
        """The fold of this name. Raises :class:`UserError` naming the folds there are."""
        for fold in self.folds:
            if fold.name == name:
                return fold
        raise UserError(f"{where}: no fold {name!r}; it holds {list_names(self.names)}")

    def save(self, path: Path) -> None:
        """Write the file."""
        write_json_atomically(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Folds:
        """Read the file.

        Raises:
            UserError: no such file, other fields, an id in two parts of a fold or tested in two, or a fold that has nothing
                to train on or to test.
        """
        content = read_json_object(path, f"{path}: no such file of folds")
        known = {entry.name for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(content) - known):
            raise UserError(f"{path}: unknown fields {list_names(unknown)}; known are {', '.join(sorted(known))}")
        entries = content.get("folds")
        if not isinstance(entries, list) or not entries:
            raise UserError(f"{path}: field 'folds' must be a list of folds, each with name, train, valid and test")
        folds = tuple(_read_fold(entry, f"{path}: folds[{place}]") for place, entry in enumerate(entries))
        _check_folds(folds, str(path))
        return cls(folds, **{name: content[name] for name in known - {"folds"} if name in content})


def _read_fold(entry: Any, where: str) -> Fold:
    if not isinstance(entry, dict) or set(entry) - {"valid"} != {"name", "train", "test"}:
        found = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(f"{where}: found {found}; a fold has the fields name, train and test, and may have valid")
    if not isinstance(entry["name"], str) or not entry["name"].strip():
        raise UserError(f"{where}: field 'name' is {quote(entry['name'])}; it must be a text")
    parts = {}
    for split in SPLITS:
        ids = entry.get(split, [])
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise UserError(f"{where}: field {split!r} must be a list of utterance ids, each a text")
        parts[split] = tuple(compose(name) for name in ids)
    return Fold(compose(entry["name"]), **parts)


def _check_folds(folds: Sequence[Fold], where: str) -> None:
    """Raises :class:`UserError` where a fold is none, or two of them test the same."""
    names = Counter(fold.name for fold in folds)
    if (name := next((name for name, count in names.items() if count > 1), None)) is not None:
        raise UserError(f"{where}: two folds are called {name!r}; each needs a name of its own")
    for fold in folds:
        for split in ("train", "test"):
            if not getattr(fold, split):
                raise UserError(f"{where}, fold {fold.name!r}: {split} is empty")
        counts = Counter(identifier for ids in fold.parts().values() for identifier in ids)
        if (twice := next((name for name, count in counts.items() if count > 1), None)) is not None:
            parts = [split for split, ids in fold.parts().items() for name in ids if name == twice]
            raise UserError(f"{where}, fold {fold.name!r}: utterance {twice!r} is in {' and '.join(parts)}, not in one")
    tested: dict[str, str] = {}
    for fold in folds:
        for identifier in fold.test:
            other = tested.setdefault(identifier, fold.name)
            if other != fold.name:
                raise UserError(
                    f"{where}: utterance {identifier!r} is tested in the folds {other!r} and {fold.name!r}; pooled answers "
                    "would count it twice"
                )


def all_utterances(splits: Mapping[str, Sequence[Utterance]]) -> Iterator[Utterance]:
    """Every utterance of the data, whichever split it is in."""
    for utterances in splits.values():
        yield from utterances


def select_fold(splits: Mapping[str, Sequence[Utterance]], fold: Fold, where: str) -> dict[str, list[Utterance]]:
    """The parts of a fold as splits; without validation utterances there is no split ``valid``.

    Raises:
        UserError: an id that the data have not.
    """
    part_of = {identifier: split for split, ids in fold.parts().items() for identifier in ids}
    found: dict[str, list[Utterance]] = {split: [] for split, ids in fold.parts().items() if ids}
    for utterance in all_utterances(splits):
        split = part_of.pop(utterance.id, None)
        if split is not None:
            found[split].append(dataclasses.replace(utterance, split=split))
    if part_of:
        missing = list_names(sorted(part_of))
        raise UserError(f"{where}, fold {fold.name!r}: the data have no utterance {missing}; these folds are of other data")
    return found


def check_fold(trained: Mapping[str, Any], made: Mapping[str, Any], fingerprint: str, where: str) -> None:
    """Refuse to answer a split of data of which a checkpoint was trained on a fold, but for that fold.

    Args:
        trained: what the checkpoint says of its data. made, fingerprint: what was read now
            (:func:`~llm_mer.data.reading.read_utterances`).

    Raises:
        UserError: other parts of the same data, which hold utterances that the checkpoint was trained on.
    """
    fold = trained.get("fold")
    whole = made["fold"]["data"] if "fold" in made else fingerprint
    if fold is not None and fold["data"] == whole and trained["fingerprint"] != fingerprint:
        raise UserError(
            f"{where}: the checkpoint was trained on fold {fold['name']!r} of these data, whose other parts and splits hold "
            f"utterances it was trained on; read the same fold: --folds FILE --fold {fold['name']}"
        )


def fold_fingerprint(fingerprint: str, fold: Fold) -> str:
    """Of the utterances and of which of them each part has, in whatever order they are listed."""
    return json_sha256([fingerprint, {split: sorted(ids) for split, ids in fold.parts().items()}])
