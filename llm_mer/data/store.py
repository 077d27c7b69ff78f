"""The utterance store: one memory-mapped Arrow file per split, and a ``store.json`` that describes them.

Feature sequences are stored flat (``T · D`` float32 values) with one ``D`` per store, so a row is read as a zero-copy view
of the file, and resident memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from llm_mer.data.checksums import ChecksumVerifier, SplitChecksums, compute_checksums
from llm_mer.data.missing_values import check_labels, check_values
from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.statistics import FeatureStatistics, RunningStatistics
from llm_mer.data.utterance_fields import NAMES, compose_labels
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.prompting.languages import require_language
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.atomic_files import replaced_folder, write_json_atomically, write_text_atomically
from llm_mer.storage.fingerprints import json_sha256
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.locks import lock_output
from llm_mer.storage.mount_points import refuse_mount_point

logger = logging.getLogger(__name__)

STORE_FILE = "store.json"
QUARANTINE_FILE = "quarantine.jsonl"
"""Lists the files that ``llm-mer extract`` could not use, one per line."""
STORE_VERSION = 1
DESCRIPTIVE_COLUMNS: tuple[str, ...] = (
    "id",
    "language",
    "text",
    "audio",
    "vision",
    "labels",
    "dialogue_id",
    "turn",
    "speaker",
    "tags",
    "votes",
    "flags",
)
FEATURE_COLUMNS: dict[str, str] = {"text": "text_features", "audio": "audio_features", "vision": "vision_features"}


@dataclass
class StoreInfo:
    """The content of ``store.json``.

    Attributes:
        feature_sizes: ``{modality: D_m}``; a modality that no utterance has is absent.
        statistics: ``{modality: FeatureStatistics}`` of the training split.
        counts: utterances per split. fingerprint: SHA-256 over every id, label, vote, text, position in a dialogue,
            speaker, tag and feature value; flags, which no model reads, are not part of it.
        checksums: of each split's file; None in stores of versions without checksums.
        feature_names: names of the feature dimensions where known. description: how the features were extracted.
    """

    feature_sizes: dict[str, int]
    statistics: dict[str, FeatureStatistics]
    counts: dict[str, int]
    fingerprint: str
    feature_names: dict[str, list[str]] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, SplitChecksums] | None = None
    version: int = STORE_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        entry = asdict(self)
        entry["statistics"] = {m: s.to_dict() for m, s in self.statistics.items()}
        return {**entry, "sha256": store_info_digest(entry)}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> StoreInfo:
        """Read :meth:`to_dict` back. Raises ``ValueError`` if the content was changed."""
        entry = dict(entry)
        recorded, computed = entry.pop("sha256", None), store_info_digest(entry)
        entry["statistics"] = {m: FeatureStatistics.from_dict(s) for m, s in entry["statistics"].items()}
        if entry.get("checksums") is not None:
            entry["checksums"] = {split: SplitChecksums(**parts) for split, parts in entry["checksums"].items()}
        info = cls(**entry)
        if (recorded is not None or info.checksums is not None) and recorded != computed:
            raise ValueError(f"its content has SHA-256 {computed[:12]}…, {str(recorded)[:12]}… was written")
        return info


def store_info_digest(entry: dict[str, Any]) -> str:
    """SHA-256 of the content of ``store.json`` without its own digest."""
    content = {name: value for name, value in entry.items() if name != "sha256"}
    return json_sha256(content, sort_keys=True, ensure_ascii=True)


def check_utterance(utterance: Utterance, sizes: dict[str, int]) -> None:
    """Refuse an utterance that cannot be trained on, naming its id and field; each new ``D_m`` is added to ``sizes``."""
    where = f"utterance {utterance.id!r}"
    if utterance.split not in SPLITS:
        raise UserError(f"{where}: split is {utterance.split!r}; it must be one of {', '.join(SPLITS)}")
    require_language(utterance.language, where)
    check_labels(utterance)
    has_modality = utterance.text is not None
    for modality, column in FEATURE_COLUMNS.items():
        features = getattr(utterance, column)
        if features is None:
            continue
        has_modality = True
        if features.ndim != 2 or 0 in features.shape:
            raise UserError(f"{where}: {column} has shape {features.shape}; it must be (steps, size), both above 0")
        size = sizes.setdefault(modality, int(features.shape[1]))
        if features.shape[1] != size:
            raise UserError(f"{where}: {column} has {features.shape[1]} features, the utterances before it have {size}")
        check_values(features, f"{where}: {column}")
    if not has_modality:
        raise UserError(f"{where} has no modality: give text, audio or video")


def _features(utterance: Utterance) -> dict[str, np.ndarray]:
    return {
        modality: np.ascontiguousarray(features, dtype=np.float32)
        for modality, column in FEATURE_COLUMNS.items()
        if (features := getattr(utterance, column)) is not None
    }


def _arrow_row(utterance: Utterance) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": utterance.id,
        "language": utterance.language,
        "text": utterance.text,
        "audio": utterance.audio,
        "vision": utterance.vision,
        "labels": json.dumps(utterance.labels, ensure_ascii=False, sort_keys=True),
        "dialogue_id": utterance.dialogue_id,
        "turn": utterance.turn,
        "speaker": utterance.speaker,
        "tags": list(utterance.tags),
        "votes": _votes_text(utterance),
        "flags": list(utterance.flags),
    }
    features = _features(utterance)
    for modality, column in FEATURE_COLUMNS.items():
        row[column] = features[modality].reshape(-1) if modality in features else None
    return row


def _votes_text(utterance: Utterance) -> str | None:
    votes = {target: votes.to_dict() for target, votes in utterance.votes.items()}
    return json.dumps(votes, ensure_ascii=False, sort_keys=True) if votes else None


def _votes_from_text(text: str | None) -> dict[str, Votes]:
    return {target: Votes.from_dict(entry) for target, entry in json.loads(text).items()} if text else {}


def _arrow_features() -> Any:
    from datasets import Features, LargeList, List, Value

    text = Value("string")
    columns: dict[str, Any] = dict.fromkeys(
        ("id", "language", "text", "audio", "vision", "labels", "dialogue_id", "speaker", "votes"), text
    )
    columns["turn"] = Value("int64")
    columns["tags"], columns["flags"] = List(text), List(text)
    for column in FEATURE_COLUMNS.values():
        columns[column] = LargeList(Value("float32"))
    return Features(columns)


class SeenIds:
    """The ids seen so far, in 8 bytes each; a set of strings would dominate memory.

    Stores 64-bit hashes, so two different ids collide with a probability of ``n² / 2^65``: one in 10^8 for a million ids.

    Args:
        recent: number of new ids kept in a set before they are merged into the sorted array.
    """

    def __init__(self, recent: int = 1 << 15) -> None:
        self._limit = recent
        self._recent: set[int] = set()
        self._sorted = np.empty(0, dtype=np.uint64)

    def add(self, identifier: str) -> bool:
        """Add an id; returns whether it is new."""
        digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        position = int(np.searchsorted(self._sorted, np.uint64(key)))
        if key in self._recent or (position < len(self._sorted) and int(self._sorted[position]) == key):
            return False
        self._recent.add(key)
        if len(self._recent) >= self._limit:
            added = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, added]))
            self._recent.clear()
        return True


class UtteranceFingerprint:
    """SHA-256 over the contents of utterances in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, utterance: Utterance) -> None:
        """Add one utterance."""
        u = utterance
        head: list[Any] = [u.id, u.split, u.language, u.text, sorted(u.labels.items())]
        head += [u.dialogue_id, u.turn, u.speaker, list(u.tags)]
        # Only where there are some: data without votes keep the fingerprint they had before there were any.
        head += [_votes_text(u)] if u.votes else []
        self._hash.update(json.dumps(head, ensure_ascii=False).encode())
        for modality, features in _features(utterance).items():
            self._hash.update(f"{modality}{features.shape}".encode())
            self._hash.update(features.tobytes())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def write_store(
    utterances: Iterable[Utterance],
    folder: Path,
    feature_names: dict[str, list[str]] | None = None,
    description: dict[str, Any] | None = None,
    extra_files: Callable[[], Mapping[str, str]] | None = None,
) -> Path:
    """Write utterances to ``folder`` in one pass and constant memory; an existing store is replaced at the end only.

    Files in ``folder`` that do not belong to a store are kept.

    Args:
        extra_files: called when all utterances are written; returns names and texts of further files of the store.

    Raises:
        UserError: a folder that is not a store, a duplicate id, a wrong split or language, feature sizes that differ, NaN,
            no utterance at all, or a full disk.
    """
    folder = Path(folder)
    check_store_place(folder)
    with lock_output(folder), replaced_folder(folder, is_store_file) as staging:
        info = _write_splits(utterances, staging, folder)
        info.feature_names, info.description = feature_names or {}, description or {}
        write_json_atomically(staging / STORE_FILE, info.to_dict())
        for name, text in (extra_files() if extra_files is not None else {}).items():
            write_text_atomically(staging / name, text)
    return folder


def check_store_place(folder: Path) -> None:
    """Raises :class:`UserError` for a place that no store can take: something else lies there, or it is a mount point."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / STORE_FILE).is_file())):
        raise UserError(f"{folder} exists and is not a store; name an empty or new folder")
    refuse_mount_point(folder)


def is_store_file(name: str) -> bool:
    """Whether this is the name of a file that :func:`write_store` writes, and may replace."""
    return name in (STORE_FILE, QUARANTINE_FILE, *(f"{split}.arrow" for split in SPLITS))


def _write_splits(utterances: Iterable[Utterance], staging: Path, folder: Path) -> StoreInfo:
    """Write ``<split>.arrow`` files into ``staging``. ``folder`` is named in messages."""
    from datasets.arrow_writer import ArrowWriter

    writers: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    running: dict[str, RunningStatistics] = {}
    counts: dict[str, int] = {}
    seen = SeenIds()
    fingerprint = UtteranceFingerprint()
    for utterance in utterances:
        check_utterance(utterance, sizes)
        if not seen.add(utterance.id):
            raise UserError(f"utterance id {utterance.id!r} occurs twice; ids must be unique within a dataset")
        if utterance.split not in writers:
            writers[utterance.split] = ArrowWriter(
                features=_arrow_features(), path=str(staging / f"{utterance.split}.arrow"), writer_batch_size=64
            )
        writers[utterance.split].write(_arrow_row(utterance))
        counts[utterance.split] = counts.get(utterance.split, 0) + 1
        fingerprint.update(utterance)
        if utterance.split == "train":
            for modality, features in _features(utterance).items():
                running.setdefault(modality, RunningStatistics()).update(features)
    if not writers:
        raise UserError(f"{folder}: no utterances to store")
    for writer in writers.values():
        writer.finalize()
    statistics = {m: result for m, r in running.items() if (result := r.result()) is not None}
    checksums = {split: compute_checksums(staging / f"{split}.arrow", DESCRIPTIVE_COLUMNS) for split in writers}
    return StoreInfo(sizes, statistics, counts, fingerprint.hexdigest(), checksums=checksums)


class UtteranceTable(Sequence[Utterance]):
    """The utterances of one split, read from the memory-mapped file one row at a time."""

    def __init__(self, path: Path, split: str, info: StoreInfo) -> None:
        from datasets import Dataset
        from pyarrow.lib import ArrowException

        self.split = split
        self.info = info
        checksums = info.checksums[split] if info.checksums is not None else None
        self._verifier = None if checksums is None else ChecksumVerifier(path, checksums)
        try:
            self._rows = Dataset.from_file(str(path)).with_format("arrow")
        except (ArrowException, OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: damaged or cut off: {error}") from None
        if len(self._rows) != info.counts.get(split):
            raise UserError(f"{path}: damaged or cut off: {len(self._rows)} utterances of {info.counts.get(split)}")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._verifier is not None:
            self._verifier.verify_row(int(index) + (len(self) if index < 0 else 0))
        row = self._rows[int(index)]
        value = {name: row.column(name)[0].as_py() for name in row.column_names if name not in FEATURE_COLUMNS.values()}
        features = {}
        for modality, column in FEATURE_COLUMNS.items():
            cell = row.column(column)[0]
            if cell.is_valid:
                flat = cell.values.to_numpy(zero_copy_only=True)
                size = self.info.feature_sizes.get(modality, 0)
                if not size or len(flat) % size:
                    raise UserError(
                        f"utterance {value['id']!r}: {column} has {len(flat)} values; {STORE_FILE} says {size} a step"
                    )
                features[column] = flat.reshape(-1, size)
        return Utterance(
            id=value["id"],
            split=self.split,
            language=value["language"],
            text=value["text"],
            audio=value["audio"],
            vision=value["vision"],
            labels=json.loads(value["labels"]),
            dialogue_id=value["dialogue_id"],
            turn=value["turn"],
            speaker=value["speaker"],
            tags=tuple(value["tags"] or ()),
            votes=_votes_from_text(value.get("votes")),
            flags=tuple(value.get("flags") or ()),
            **features,
        )

    def __iter__(self) -> Iterator[Utterance]:
        for index in range(len(self)):
            yield self[index]

    def steps(self, modality: str) -> list[int]:
        """Steps of a modality's feature sequence in every row, 0 where there is none; no feature is read."""
        import pyarrow.compute as pc

        size = self.info.feature_sizes.get(modality)
        if not size:
            return [0] * len(self)
        values = pc.list_value_length(self._rows.data.column(FEATURE_COLUMNS[modality])).to_pylist()
        return [(count or 0) // size for count in values]

    def column(self, name: str) -> list[Any]:
        """One descriptive column of every row: ``id``, ``language``, ``dialogue_id``, ``turn``, ``speaker``, ``labels`` …"""
        if name == "votes" and name not in self._rows.column_names:  # a store of a version before there were any
            return [{} for _ in range(len(self))]
        stored = self._rows.data.column(name)
        if self._verifier is not None:
            self._verifier.verify_column(name, stored.chunks)
        values = stored.to_pylist()
        if name == "votes":
            return [_votes_from_text(text) for text in values]
        if name in NAMES:  # as those of the utterances, which a version before may have stored in another form
            return [None if value is None else compose(value) for value in values]
        return [compose_labels(json.loads(v)) for v in values] if name == "labels" else values


@dataclass
class UtteranceStore:
    """An opened store."""

    folder: Path
    info: StoreInfo

    @classmethod
    def open(cls, folder: Path | str) -> UtteranceStore:
        """Open a folder written by :func:`write_store`. Raises :class:`UserError` if it is not one."""
        folder = Path(folder)
        path = folder / STORE_FILE
        entry = read_json_object(path, f"{folder}: no {STORE_FILE} here; a store is written by `llm-mer extract`")
        if entry.get("version") != STORE_VERSION:
            raise UserError(f"{path}: version {entry.get('version')!r}, this version reads {STORE_VERSION}")
        try:
            info = StoreInfo.from_dict(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged, a field is missing or has the wrong type: {error}") from None
        except ValueError as error:
            raise UserError(f"{path}: damaged or edited: {error}") from None
        if info.checksums is None:
            logger.warning("%s has no checksums, so damage goes undetected; create the store again to add them", folder)
        return cls(folder, info)

    def split(self, name: str) -> UtteranceTable:
        """Open one split. Raises :class:`UserError` naming the available splits."""
        path = self.folder / f"{name}.arrow"
        if not path.is_file():
            raise UserError(f"{self.folder}: no split {name!r}; it holds {', '.join(sorted(self.info.counts))}")
        return UtteranceTable(path, name, self.info)
