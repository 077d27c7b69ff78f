"""Utterances made worse by a stated amount: the contract of a corruption, missing steps and dropped frames.

Every random choice is drawn from (seed, utterance id, kind), so it depends neither on order nor on batches or processes.
The amount is no part of it: what is missing at a rate of 0.1 is missing at 0.3 too, and curves over amounts compare the
same utterances with more and more taken from them.
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
    """Arrays by key: files of a folder, so that an interrupted extraction goes on, or memory where there is no folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def get(self, key: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this key, made where it is not there yet; a damaged file is made again."""
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
    """What a model reads of an utterance and how its features were made.

    Attributes:
        modalities: that its adapter reads. text_source: ``backbone`` (the transcript) or ``features``.
        features: settings of the extraction, None where they are not known.
        cache: where features that are made again are kept.
    """

    modalities: tuple[str, ...]
    text_source: str = "backbone"
    features: FeatureSettings | None = None
    cache: FeatureCache = field(default_factory=FeatureCache)

    def columns(self, utterance: Utterance) -> list[str]:
        """Fields of the utterance that it reads and that are there."""
        names = ["text" if m == "text" and self.text_source == "backbone" else FEATURE_COLUMNS[m] for m in self.modalities]
        return [name for name in names if (value := getattr(utterance, name)) is not None and len(value)]


@dataclass(frozen=True)
class Corruption(ABC):
    """One kind of corruption at one amount, of what one model reads."""

    amount: float
    seed: int
    input_spec: ModelInputSpec

    kind: ClassVar[str]
    needs: ClassVar[str | None] = None
    """The modality without which it changes nothing."""
    is_rate: ClassVar[bool] = True
    """Whether the amount is a rate, where 0 changes nothing."""

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """The corruption for the utterances of a dataset.

        Raises:
            UserError: an amount out of range, or data that cannot be corrupted in this way.
        """
        cls.check_amount(amount)
        return cls(amount, seed, input_spec)

    @classmethod
    def check_amount(cls, amount: float) -> None:
        """Raises :class:`UserError` for an amount that is none of this kind."""
        if not 0 < amount <= 1:
            raise UserError(f"{cls.kind}:{amount:g}: the rate must lie in (0, 1]")

    @classmethod
    @abstractmethod
    def name(cls, amount: float) -> str:
        """What it is called in tables."""

    @abstractmethod
    def __call__(self, utterance: Utterance) -> Utterance:
        """The corrupted utterance."""

    def generator(self, utterance: Utterance, part: str = "") -> np.random.Generator:
        """Random numbers of (seed, utterance id, kind, part), the same at every amount."""
        key = json.dumps([self.kind, part, self.seed, utterance.id], ensure_ascii=False)
        return np.random.default_rng(np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32))

    @property
    def recomputes_features(self) -> bool:
        """Whether features have to be made again."""
        return False

    def prepare(self, utterances: Iterable[Utterance], total: int, progress: str | None = None) -> None:
        """Where it is slow, corrupt these utterances once, under a bar, so that their features wait in the cache."""
        if self.recomputes_features:
            quiet = progress is None
            shown = track_progress(
                utterances, total=total, description=progress or "", unit="clip", hidden=quiet, keep=False
            )
            for utterance in shown:
                self(utterance)


def keep_steps(utterance: Utterance, column: str, kept: np.ndarray) -> Any:
    """The field with only these steps or words, None without any."""
    value = getattr(utterance, column)
    if kept.all():
        return value
    if not kept.any():
        return None
    if column != "text":
        return value[kept]
    words = split_words(value, utterance.language)
    return join_words([word for word, keep in zip(words, kept, strict=True) if keep], utterance.language)


@dataclass(frozen=True)
class MissingSteps(Corruption):
    """MMSA's missing-rate protocol (TFR-Net, Yuan et al. 2021): each step of each modality is missing with the rate.

    Independently for every time step of audio, vision and text features and every word of the transcript (character of
    Chinese). Text features with as many steps as the transcript has words lose the steps of the words it loses.

    MMSA writes zero vectors in the place of missing audio and vision steps and [UNK] for missing words, and its models
    read them as steps. Here a missing step is removed, as padding is, and a modality that loses every step is missing
    and gets the adapter's learned stand-in. MMSA never takes the text's [CLS] and [SEP]; here, where everything the
    input_spec reads of an utterance would go, the step with the largest draw stays.
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
        kept = {column: values >= self.amount for column, values in draws.items()}
        read = [column for column in self.input_spec.columns(utterance) if len(draws.get(column, ()))]
        if read and not any(kept[column].any() for column in read):
            last = max(read, key=lambda column: float(draws[column].max()))
            kept[last] = np.arange(len(draws[last])) == draws[last].argmax()
        changes: dict[str, Any] = {column: keep_steps(utterance, column, mask) for column, mask in kept.items()}
        return dataclasses.replace(utterance, **changes)


@dataclass(frozen=True)
class DroppedFrames(Corruption):
    """Each vision step is lost with the rate, as by a bad connection; lost steps are removed.

    Where vision is all there is of an utterance for its input_spec, the step with the largest draw stays.
    """

    kind = "drop_frames"
    needs = "vision"

    @classmethod
    def name(cls, amount: float) -> str:
        return f"frames dropped {amount:g}"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """Raises :class:`UserError` also where no utterance has more than one vision step."""
        cls.check_amount(amount)
        seen = [len(v) for row in dataset.rows if (v := dataset.utterances[row].vision_features) is not None]
        if max(seen, default=0) < 2:
            raise UserError(
                f"drop_frames:{amount:g}: "
                + ("vision is one vector an utterance here (T=1)" if seen else "no utterance has vision features")
                + ", there are no frames to drop; use without:vision"
            )
        return cls(amount, seed, input_spec)

    def __call__(self, utterance: Utterance) -> Utterance:
        features = utterance.vision_features
        if features is None:
            return utterance
        draws = self.generator(utterance).random(len(features))
        kept = draws >= self.amount
        if not kept.any() and self.input_spec.columns(utterance) == [FEATURE_COLUMNS["vision"]]:
            kept = np.arange(len(draws)) == draws.argmax()
        return dataclasses.replace(utterance, vision_features=keep_steps(utterance, "vision_features", kept))
