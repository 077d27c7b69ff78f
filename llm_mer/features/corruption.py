"""Corruptions that may require features to be extracted again: word errors and audio noise; and the table of all kinds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llm_mer.data.corruption import Corruption, DroppedFrames, FeatureCache, MissingSteps, ModelInputSpec
from llm_mer.data.dataset import MerDataset
from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.words import join_words, split_words
from llm_mer.errors import UserError

SUBSTITUTIONS, DELETIONS = 0.7, 0.2
"""Shares of word errors; the remaining 0.1 are insertions."""


@dataclass(frozen=True)
class TranscriptWords:
    """All words of the transcripts of one language in utterance order, and the span of each utterance."""

    words: list[str]
    spans: dict[str, tuple[int, int]]

    def draw_substitute(self, utterance: str, word: str, draw: float) -> str | None:
        """A different word from another utterance, drawn in proportion to its frequency; None if there is none."""
        start, stop = self.spans.get(utterance, (0, 0))
        count = len(self.words) - (stop - start)
        for offset in range(count):
            index = (int(draw * count) + offset) % count
            candidate = self.words[index if index < start else index + stop - start]
            if candidate != word:
                return candidate
        return None


@dataclass(frozen=True)
class WordErrors(Corruption):
    """A transcript with the errors of a speech recogniser of this word error rate (character errors in Chinese).

    Each word is in error with this probability: 70 % substitutions, 20 % deletions, 10 % insertions after it, so that
    (substitutions + deletions + insertions) / words is the rate on average; the rate of the best alignment is slightly
    lower, where a deletion is adjacent to an insertion. Substituted and inserted words come from the other transcripts of
    the language, in proportion to their frequency; if there is no other word, the word is deleted. A transcript never loses
    its last word.

    If the model reads text as stored features, the changed transcript is encoded again with the checkpoint's encoder.
    """

    kind = "word_errors"
    needs = "text"
    vocabulary: dict[str, TranscriptWords] = field(default_factory=dict)
    encode: Callable[[str], np.ndarray] | None = None

    @classmethod
    def name(cls, amount: float) -> str:
        return f"word error rate {amount:g}"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """Raises :class:`UserError` also if there are no transcripts, or text features that cannot be recomputed."""
        cls.check_amount(amount)
        vocabulary: dict[str, TranscriptWords] = {}
        for identity, language, text in dataset.transcripts():
            known = vocabulary.setdefault(language, TranscriptWords([], {}))
            words = split_words(text or "", language)
            known.spans[identity] = (len(known.words), len(known.words) + len(words))
            known.words.extend(words)
        condition = f"word_errors:{amount:g}"
        for language in dataset.languages_present():
            if len(set(vocabulary[language].words)) < 2:
                raise UserError(
                    f"{condition}: the transcripts in language {language!r} have no two different words to exchange"
                )
        encode = None
        if input_spec.text_source == "features":
            if input_spec.features is None or input_spec.features.text == "none":
                raise UserError(
                    f"{condition}: the checkpoint reads text as features, and their encoder is unknown, so a changed "
                    "transcript cannot be encoded; extract with --text ENCODER and train on that"
                )
            for row in dataset.rows:
                utterance = dataset.utterances[row]
                if utterance.text_features is not None and not utterance.text:
                    raise UserError(f"{condition}: utterance {utterance.id!r} has text features and no transcript to change")
            encode = text_encoder(input_spec.features, input_spec.cache)
        return cls(amount, seed, input_spec, vocabulary, encode)

    def __call__(self, utterance: Utterance) -> Utterance:
        if not utterance.text:
            return utterance
        text = self.transcript(utterance)
        if self.encode is None or utterance.text_features is None or text == utterance.text:
            return dataclasses.replace(utterance, text=text)
        return dataclasses.replace(utterance, text=text, text_features=self.encode(text))

    def transcript(self, utterance: Utterance) -> str:
        """The transcript with its errors; the unchanged text if there are none."""
        text, language = str(utterance.text), utterance.language
        words = split_words(text, language)
        error_draws, kind_draws, word_draws = self.generator(utterance).random((3, len(words)))
        if not (error_draws < self.amount).any():
            return text
        known = self.vocabulary[language]
        corrupted: list[str] = []
        for i, word in enumerate(words):
            other = known.draw_substitute(utterance.id, word, float(word_draws[i]))
            if error_draws[i] >= self.amount:
                corrupted.append(word)
            elif other is None or SUBSTITUTIONS <= kind_draws[i] < SUBSTITUTIONS + DELETIONS:
                continue
            elif kind_draws[i] < SUBSTITUTIONS:
                corrupted.append(other)
            else:
                corrupted += [word, other]
        return join_words(corrupted or words[-1:], language)

    @property
    def recomputes_features(self) -> bool:
        return self.encode is not None


@dataclass(frozen=True)
class AudioNoise(Corruption):
    """White Gaussian noise added to the audio, whose features are extracted again with the checkpoint's own settings.

    ``y = x + n`` with n drawn from N(0, rms(x)² / 10^(dB / 10)); the rms is that of the whole clip, pauses included, and y
    is not clipped, which would change the ratio. A silent clip stays silent.
    """

    kind = "audio_snr"
    needs = "audio"
    is_rate = False
    extract: Callable[[Utterance, Callable[[np.ndarray], np.ndarray]], np.ndarray] | None = None

    @classmethod
    def check_amount(cls, amount: float) -> None:
        if not np.isfinite(amount):
            raise UserError(f"audio_snr:{amount:g}: the ratio must be a finite number of decibels")

    @classmethod
    def name(cls, amount: float) -> str:
        return f"audio at {amount:g} dB"

    @classmethod
    def build(cls, amount: float, seed: int, dataset: MerDataset, input_spec: ModelInputSpec) -> Corruption:
        """Raises :class:`UserError` also if the audio files or the settings of their features are unknown."""
        cls.check_amount(amount)
        condition = f"audio_snr:{amount:g}"
        if input_spec.features is None or input_spec.features.audio == "none":
            raise UserError(
                f"{condition}: the checkpoint was trained on audio features of unknown extraction settings, so features of "
                "noisy audio cannot be computed; train on a store of `llm-mer extract`"
            )
        for row in dataset.rows:
            utterance = dataset.utterances[row]
            if utterance.audio_features is None:
                continue
            if utterance.audio is None:
                raise UserError(
                    f"{condition}: utterance {utterance.id!r} has audio features but no audio file; extract the store "
                    "from media with `llm-mer extract`"
                )
            if not Path(utterance.audio).is_file():
                raise UserError(f"{condition}: utterance {utterance.id!r}: {utterance.audio}: no such file")
        return cls(amount, seed, input_spec, sound_extractor(input_spec.features, input_spec.cache, (amount, seed)))

    def __call__(self, utterance: Utterance) -> Utterance:
        if utterance.audio_features is None or utterance.audio is None or self.extract is None:
            return utterance
        features = self.extract(utterance, lambda samples: self.add_noise(samples, utterance))
        return dataclasses.replace(utterance, audio_features=features)

    def add_noise(self, samples: np.ndarray, utterance: Utterance) -> np.ndarray:
        """The waveform ``(samples,)`` with noise added."""
        rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        noise = self.generator(utterance).standard_normal(len(samples))
        return (samples + noise * rms * 10 ** (-self.amount / 20)).astype(np.float32)

    @property
    def recomputes_features(self) -> bool:
        return True


def text_encoder(settings: FeatureSettings, cache: FeatureCache) -> Callable[[str], np.ndarray]:
    """The text encoder of these settings, loaded on first use."""
    from llm_mer.data.feature_settings import NONE
    from llm_mer.features.extractor import Extractor

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
    """A function that extracts features of an utterance's modified audio; the extractor is loaded on first use."""
    from llm_mer.data.feature_settings import NONE
    from llm_mer.features.extractor import Extractor
    from llm_mer.features.media import read_audio

    own = dataclasses.replace(settings, vision=NONE, text=NONE)
    loaded: list[Extractor] = []

    def extract(utterance: Utterance, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if not loaded:
            loaded.append(Extractor(own))
        assert loaded[0].audio is not None
        assert utterance.audio is not None
        return loaded[0].audio(change(read_audio(utterance.audio)))

    def extract_cached(utterance: Utterance, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        state = os.stat(str(utterance.audio))
        key = ["audio", own.to_dict(), *noise, utterance.id, utterance.audio, state.st_size, state.st_mtime_ns]
        return cache.get(key, lambda: extract(utterance, change))

    return extract_cached


CORRUPTIONS: dict[str, type[Corruption]] = {cls.kind: cls for cls in (MissingSteps, DroppedFrames, WordErrors, AudioNoise)}
