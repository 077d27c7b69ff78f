"""Corrupting utterances by a given amount: the interface of a corruption, missing steps and dropped frames.

Every random choice is seeded by (seed, utterance id, kind), so it does not depend on order, batches or processes. The amount
is not part of the seed: what is missing at a rate of 0.1 is missing at 0.3 too, so curves over amounts compare the same
utterances with increasing corruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llm_mer.data.dataset import MerDataset
from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.data.words import join_words, split_words
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import open_atomically
from llm_mer.storage.fingerprints import json_sha256


class FeatureCache:
    """Arrays by key: in files of a folder, so that an interrupted extraction can resume, or in memory without a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, key: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this key, computed if it is missing; a damaged file is recomputed."""
        name = json_sha256(key)[:32]
        if self.folder is None:
            if name not in self._arrays:
                self._arrays[name] = make()
            return self._arrays[name]
        path = self.folder / f"{name}.npy"
        if path.is_file():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError):
                path.unlink(missing_ok=True)
        values = np.asarray(make(), dtype=np.float32)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, "wb") as stream:
            np.save(stream, values)
        return values


@dataclass(frozen=True)
class ModelInputSpec:
    """Which parts of an utterance a model reads, and how its features were extracted.

    Attributes:
        modalities: those its adapter reads. text_source: ``backbone`` (the transcript) or ``features``.
        features: settings of the extraction, None if unknown.
        cache: where recomputed features are kept.
    """

    modalities: tuple[str, ...]
    text_source: str = "backbone"
    features: FeatureSettings | None = None
    cache: FeatureCache = field(default_factory=FeatureCache)

    def columns(self, utterance: Utterance) -> list[str]:
        """Fields of the utterance that the model reads and that are present."""
        names = ["text" if m == "text" and self.text_source == "backbone" else FEATURE_COLUMNS[m] for m in self.modalities]
        return [name for name in names if (value := getattr(utterance, name)) is not None and len(value)]


@dataclass(frozen=True)
class Corruption(ABC):
    """One kind of corruption at one amount, applied to what one model reads."""

    amount: float
    seed: int
    input_spec: ModelInputSpec

    kind: ClassVar[str]
    needs: ClassVar[str | None] = None
    """The modality without which it has no effect."""
    is_rate: ClassVar[bool] = True
    """Whether the amount is a rate, with 0 meaning no corruption."""

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """Build the corruption for the utterances of a dataset.

        Raises:
            UserError: an amount out of range, or data that cannot be corrupted in this way.
        """
        cls.check_amount(amount)
        return cls(amount, seed, input_spec)

    @classmethod
    def check_amount(cls, amount: float) -> None:
        """Raises :class:`UserError` for an invalid amount."""
        if not 0 < amount <= 1:
            raise UserError(f"{cls.kind}:{amount:g}: the rate must lie in (0, 1]")

    @classmethod
    @abstractmethod
    def name(cls, amount: float) -> str:
        """Its name in tables."""

    @abstractmethod
    def __call__(self, utterance: Utterance) -> Utterance:
        """The corrupted utterance."""

    def generator(self, utterance: Utterance, part: str = "") -> np.random.Generator:
        """A generator seeded by (seed, utterance id, kind, part), the same at every amount."""
        key = json.dumps([self.kind, part, self.seed, utterance.id], ensure_ascii=False)
        return np.random.default_rng(np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32))

    @property
    def recomputes_features(self) -> bool:
        """Whether features have to be extracted again."""
        return False

    def prepare(self, utterances: Iterable[Utterance], total: int, progress: str | None = None) -> None:
        """If features are extracted again, corrupt these utterances once, with a progress bar, which fills the cache."""
        if self.recomputes_features:
            hidden = progress is None
            tracked = track_progress(
                utterances, total=total, description=progress or "", unit="clip", hidden=hidden, keep=False
            )
            for utterance in tracked:
                self(utterance)


def keep_steps(utterance: Utterance, column: str, kept_mask: np.ndarray) -> Any:
    """The field with only the kept steps or words, None if none is kept."""
    value = getattr(utterance, column)
    if kept_mask.all():
        return value
    if not kept_mask.any():
        return None
    if column != "text":
        return value[kept_mask]
    words = split_words(value, utterance.language)
    return join_words([word for word, keep in zip(words, kept_mask, strict=True) if keep], utterance.language)


@dataclass(frozen=True)
class MissingSteps(Corruption):
    """MMSA's missing-rate protocol (TFR-Net, Yuan et al. 2021): each step of each modality is missing at this rate.

    Drawn independently for every time step of audio, vision and text features and every word of the transcript (character of
    Chinese). Text features with as many steps as the transcript has words lose the steps of the missing words.

    MMSA replaces missing audio and vision steps by zero vectors and missing words by [UNK], which its models read as steps.
    Here a missing step is removed, as padding is, and a modality that loses every step is missing and represented by the
    adapter's learned placeholder. MMSA never removes the text's [CLS] and [SEP]; here, if everything that the model reads
    of an utterance would be removed, the step with the largest draw is kept.
    """

    kind = "missing"

    @classmethod
    def name(cls, amount: float) -> str:
        return f"missing rate {amount:g}"

    def __call__(self, utterance: Utterance) -> Utterance:
        draws: dict[str, np.ndarray] = {}
        if utterance.text:
            count = len(split_words(utterance.text, utterance.language))
            draws["text"] = self.generator(utterance, "text").random(count)
        for modality, column in FEATURE_COLUMNS.items():
            features = getattr(utterance, column)
            if features is None:
                continue
            draws[column] = self.generator(utterance, column).random(len(features))
            if modality == "text" and "text" in draws and len(draws["text"]) == len(features):
                draws[column] = draws["text"]
        kept_mask = {column: values >= self.amount for column, values in draws.items()}
        read_columns = [column for column in self.input_spec.columns(utterance) if len(draws.get(column, ()))]
        if read_columns and not any(kept_mask[column].any() for column in read_columns):
            last = max(read_columns, key=lambda column: float(draws[column].max()))
            kept_mask[last] = np.arange(len(draws[last])) == draws[last].argmax()
        changes: dict[str, Any] = {column: keep_steps(utterance, column, mask) for column, mask in kept_mask.items()}
        return dataclasses.replace(utterance, **changes)


@dataclass(frozen=True)
class DroppedFrames(Corruption):
    """Each vision step is dropped at this rate, as over a bad connection.

    If vision is all that the model reads of an utterance, the step with the largest draw is kept.
    """

    kind = "drop_frames"
    needs = "vision"

    @classmethod
    def name(cls, amount: float) -> str:
        return f"frames dropped {amount:g}"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """Raises :class:`UserError` also if no utterance has more than one vision step."""
        cls.check_amount(amount)
        lengths = [len(v) for row in dataset.rows if (v := dataset.utterances[row].vision_features) is not None]
        if max(lengths, default=0) < 2:
            raise UserError(
                f"drop_frames:{amount:g}: "
                + ("vision is one vector an utterance here (T=1)" if lengths else "no utterance has vision features")
                + ", there are no frames to drop; use without:vision"
            )
        return cls(amount, seed, input_spec)

    def __call__(self, utterance: Utterance) -> Utterance:
        features = utterance.vision_features
        if features is None:
            return utterance
        draws = self.generator(utterance).random(len(features))
        kept_mask = draws >= self.amount
        if not kept_mask.any() and self.input_spec.columns(utterance) == [FEATURE_COLUMNS["vision"]]:
            kept_mask = np.arange(len(draws)) == draws.argmax()
        return dataclasses.replace(utterance, vision_features=keep_steps(utterance, "vision_features", kept_mask))
