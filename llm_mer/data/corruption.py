"""Utterances made worse by a stated amount: missing steps, dropped frames, word errors, noise under the voice.

Every random choice is drawn from (seed, utterance id, kind), so it depends neither on order nor on batches or processes.
The amount is no part of it: what is missing at a rate of 0.1 is missing at 0.3 too, and curves over amounts compare the
same utterances with more and more taken from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm import tqdm

from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.data.words import join_words, split_words
from llm_mer.errors import UserError

if TYPE_CHECKING:
    from llm_mer.data.dataset import MerDataset
    from llm_mer.features.extract import FeatureSettings

SUBSTITUTIONS, DELETIONS = 0.7, 0.2
"""Shares of word errors; the rest, 0.1, are insertions."""


class FeatureCache:
    """Arrays by key: files of a folder, so that an interrupted extraction goes on, or memory where there is no folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[str, np.ndarray] = {}

    def get(self, key: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of this key, made where it is not there yet; a damaged file is made again."""
        name = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).hexdigest()[:32]
        if self.folder is None:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]
        path = self.folder / f"{name}.npy"
        if path.is_file():
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError):
                path.unlink(missing_ok=True)
        values = np.asarray(make(), dtype=np.float32)
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        with scratch.open("wb") as stream:
            np.save(stream, values)
        scratch.replace(path)
        return values


@dataclass(frozen=True)
class Reader:
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
    """One kind of damage at one amount, for one reader of the damaged utterances."""

    amount: float
    seed: int
    reader: Reader

    kind: ClassVar[str]
    needs: ClassVar[str | None] = None
    """The modality without which it changes nothing."""
    is_rate: ClassVar[bool] = True
    """Whether the amount is a rate, where 0 is no damage at all."""

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, reader: Reader) -> Corruption:
        """The corruption for the utterances of a dataset.

        Raises:
            UserError: an amount out of range, or data that cannot be damaged in this way.
        """
        cls.check_amount(amount)
        return cls(amount, seed, reader)

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
        """The damaged utterance."""

    def generator(self, utterance: Utterance, part: str = "") -> np.random.Generator:
        """Random numbers of (seed, utterance id, kind, part), the same at every amount."""
        key = json.dumps([self.kind, part, self.seed, utterance.id], ensure_ascii=False)
        return np.random.default_rng(np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32))

    @property
    def slow(self) -> bool:
        """Whether features have to be made again."""
        return False

    def prepare(self, utterances: Iterable[Utterance], total: int, progress: str | None = None) -> None:
        """Where it is slow, damage these utterances once, under a bar, so that their features wait in the cache."""
        if self.slow:
            quiet = progress is None
            for utterance in tqdm(utterances, total=total, desc=progress, unit="clip", disable=quiet, leave=False):
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
    reader reads of an utterance would go, the step with the largest draw stays.
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
        read = [column for column in self.reader.columns(utterance) if len(draws.get(column, ()))]
        if read and not any(kept[column].any() for column in read):
            last = max(read, key=lambda column: float(draws[column].max()))
            kept[last] = np.arange(len(draws[last])) == draws[last].argmax()
        changes: dict[str, Any] = {column: keep_steps(utterance, column, mask) for column, mask in kept.items()}
        return dataclasses.replace(utterance, **changes)


@dataclass(frozen=True)
class DroppedFrames(Corruption):
    """Each vision step is lost with the rate, as by a bad connection; lost steps are removed.

    Where vision is all there is of an utterance for its reader, the step with the largest draw stays.
    """

    kind = "drop_frames"
    needs = "vision"

    @classmethod
    def name(cls, amount: float) -> str:
        return f"frames dropped {amount:g}"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, reader: Reader) -> Corruption:
        """Raises :class:`UserError` also where no utterance has more than one vision step."""
        cls.check_amount(amount)
        seen = [len(v) for row in dataset.rows if (v := dataset.utterances[row].vision_features) is not None]
        if max(seen, default=0) < 2:
            raise UserError(
                f"drop_frames:{amount:g}: "
                + ("vision is one vector an utterance here (T=1)" if seen else "no utterance has vision features")
                + ", there are no frames to drop; use without:vision"
            )
        return cls(amount, seed, reader)

    def __call__(self, utterance: Utterance) -> Utterance:
        features = utterance.vision_features
        if features is None:
            return utterance
        draws = self.generator(utterance).random(len(features))
        kept = draws >= self.amount
        if not kept.any() and self.reader.columns(utterance) == [FEATURE_COLUMNS["vision"]]:
            kept = np.arange(len(draws)) == draws.argmax()
        return dataclasses.replace(utterance, vision_features=keep_steps(utterance, "vision_features", kept))


@dataclass(frozen=True)
class Words:
    """All words of the transcripts of one language, one utterance after another, and where each utterance's lie."""

    words: list[str]
    places: dict[str, tuple[int, int]]

    def other(self, utterance: str, word: str, draw: float) -> str | None:
        """A word of another utterance that is not this one, drawn as often as it occurs; None where there is none."""
        start, stop = self.places.get(utterance, (0, 0))
        count = len(self.words) - (stop - start)
        for offset in range(count):
            place = (int(draw * count) + offset) % count
            found = self.words[place if place < start else place + stop - start]
            if found != word:
                return found
        return None


@dataclass(frozen=True)
class WordErrors(Corruption):
    """A transcript as a speech recogniser with this word error rate might give it (character errors in Chinese).

    At each word an error happens with the rate: 70 % substitutions, 20 % deletions, 10 % insertions after it, so that
    (substitutions + deletions + insertions) / words is the rate in the mean; the rate of the best alignment is a little
    lower, where a deletion stands beside an insertion. Words come from the other transcripts of the language, as often as
    they occur there; where these have no other word, the word is deleted. A transcript never loses its last word.

    Where the model reads text as stored features, the changed transcript is encoded again with the checkpoint's encoder.
    """

    kind = "word_errors"
    needs = "text"
    vocabulary: dict[str, Words] = field(default_factory=dict)
    encode: Callable[[str], np.ndarray] | None = None

    @classmethod
    def name(cls, amount: float) -> str:
        return f"word error rate {amount:g}"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, reader: Reader) -> Corruption:
        """Raises :class:`UserError` also where there are no transcripts, or text features that cannot be made again."""
        cls.check_amount(amount)
        vocabulary: dict[str, Words] = {}
        for identity, language, text in dataset.transcripts():
            known = vocabulary.setdefault(language, Words([], {}))
            words = split_words(text or "", language)
            known.places[identity] = (len(known.words), len(known.words) + len(words))
            known.words.extend(words)
        here = f"word_errors:{amount:g}"
        for language in dataset.spoken_languages():
            if len(set(vocabulary[language].words)) < 2:
                raise UserError(f"{here}: the transcripts in language {language!r} have no two words to exchange")
        encode = None
        if reader.text_source == "features":
            if reader.features is None or reader.features.text == "none":
                raise UserError(
                    f"{here}: the checkpoint reads text as features, and what encoded them is not known, so a changed "
                    "transcript cannot be encoded; extract with --text ENCODER and train on that"
                )
            for row in dataset.rows:
                utterance = dataset.utterances[row]
                if utterance.text_features is not None and not utterance.text:
                    raise UserError(f"{here}: utterance {utterance.id!r} has text features and no transcript to change")
            encode = text_encoder(reader.features, reader.cache)
        return cls(amount, seed, reader, vocabulary, encode)

    def __call__(self, utterance: Utterance) -> Utterance:
        if not utterance.text:
            return utterance
        text = self.transcript(utterance)
        if self.encode is None or utterance.text_features is None or text == utterance.text:
            return dataclasses.replace(utterance, text=text)
        return dataclasses.replace(utterance, text=text, text_features=self.encode(text))

    def transcript(self, utterance: Utterance) -> str:
        """The words with their errors; the text as it is where none happens."""
        text, language = str(utterance.text), utterance.language
        words = split_words(text, language)
        happens, which, choice = self.generator(utterance).random((3, len(words)))
        if not (happens < self.amount).any():
            return text
        known = self.vocabulary[language]
        heard: list[str] = []
        for i, word in enumerate(words):
            other = known.other(utterance.id, word, float(choice[i]))
            if happens[i] >= self.amount:
                heard.append(word)
            elif other is None or SUBSTITUTIONS <= which[i] < SUBSTITUTIONS + DELETIONS:
                continue
            elif which[i] < SUBSTITUTIONS:
                heard.append(other)
            else:
                heard += [word, other]
        return join_words(heard or words[-1:], language)

    @property
    def slow(self) -> bool:
        return self.encode is not None


@dataclass(frozen=True)
class NoisySound(Corruption):
    """White Gaussian noise under the sound, its features extracted again with the checkpoint's own settings.

    ``y = x + n`` with n drawn from N(0, rms(x)² / 10^(dB / 10)); the rms is the whole clip's, pauses included, and y is
    not clipped, which would change the ratio. A silent clip stays silent.
    """

    kind = "audio_snr"
    needs = "audio"
    is_rate = False
    extract: Callable[[Utterance, Callable[[np.ndarray], np.ndarray]], np.ndarray] | None = None

    @classmethod
    def check_amount(cls, amount: float) -> None:
        if not np.isfinite(amount):
            raise UserError(f"audio_snr:{amount:g}: the ratio must be a number of decibels")

    @classmethod
    def name(cls, amount: float) -> str:
        return f"audio at {amount:g} dB"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, reader: Reader) -> Corruption:
        """Raises :class:`UserError` also where the sound or the settings of its features are not known."""
        cls.check_amount(amount)
        here = f"audio_snr:{amount:g}"
        if reader.features is None or reader.features.audio == "none":
            raise UserError(
                f"{here}: the checkpoint was trained on audio features whose extraction it does not know, so noisy sound "
                "cannot become features; train on a store of `llm-mer extract`"
            )
        for row in dataset.rows:
            utterance = dataset.utterances[row]
            if utterance.audio_features is None:
                continue
            if utterance.audio is None:
                raise UserError(
                    f"{here}: utterance {utterance.id!r} has audio features and no path of its sound; extract the store "
                    "from media with `llm-mer extract`"
                )
            if not Path(utterance.audio).is_file():
                raise UserError(f"{here}: utterance {utterance.id!r}: {utterance.audio}: there is no such file")
        return cls(amount, seed, reader, sound_extractor(reader.features, reader.cache, (amount, seed)))

    def __call__(self, utterance: Utterance) -> Utterance:
        if utterance.audio_features is None or utterance.audio is None or self.extract is None:
            return utterance
        features = self.extract(utterance, lambda samples: self.noisy(samples, utterance))
        return dataclasses.replace(utterance, audio_features=features)

    def noisy(self, samples: np.ndarray, utterance: Utterance) -> np.ndarray:
        """The waveform ``(samples,)`` with its noise."""
        rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        noise = self.generator(utterance).standard_normal(len(samples))
        return (samples + noise * rms * 10 ** (-self.amount / 20)).astype(np.float32)

    @property
    def slow(self) -> bool:
        return True


def text_encoder(settings: FeatureSettings, cache: FeatureCache) -> Callable[[str], np.ndarray]:
    """The text encoder of these settings, loaded at its first text."""
    from llm_mer.features.extract import NONE, Extractor

    own = dataclasses.replace(settings, audio=NONE, vision=NONE)
    loaded: list[Extractor] = []

    def encode(text: str) -> np.ndarray:
        if not loaded:
            loaded.append(Extractor(own))
        return np.asarray(loaded[0].text(text))

    return lambda text: cache.get(["text", own.to_dict(), text], lambda: encode(text))


def sound_extractor(
    settings: FeatureSettings, cache: FeatureCache, noise: tuple[float, int]
) -> Callable[[Utterance, Callable[[np.ndarray], np.ndarray]], np.ndarray]:
    """Audio features of an utterance's own sound after a change to it, loaded at the first."""
    from llm_mer.features.extract import NONE, Extractor
    from llm_mer.features.media import read_audio

    own = dataclasses.replace(settings, vision=NONE, text=NONE)
    loaded: list[Extractor] = []

    def extract(utterance: Utterance, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if not loaded:
            loaded.append(Extractor(own))
        assert loaded[0].audio is not None
        assert utterance.audio is not None
        return loaded[0].audio(change(read_audio(utterance.audio)))

    def kept(utterance: Utterance, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        state = os.stat(str(utterance.audio))
        key = ["audio", own.to_dict(), *noise, utterance.id, utterance.audio, state.st_size, state.st_mtime_ns]
        return cache.get(key, lambda: extract(utterance, change))

    return kept


CORRUPTIONS: dict[str, type[Corruption]] = {cls.kind: cls for cls in (MissingSteps, DroppedFrames, WordErrors, NoisySound)}
