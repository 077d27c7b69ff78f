"""Speech synthesis: espeak-ng with an emotion's prosody."""

from __future__ import annotations

import _ctypes
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.errors import UserError

RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER
SYNCHRONOUS, RETRIEVAL_ONLY, UTF8 = 2, 1, 1
VOICES: dict[str, str] = {"en": "en", "zh": "cmn"}


@dataclass(frozen=True)
class Prosody:
    """Deviation from a speaker's own baseline at full intensity.

    ``rate`` and ``loudness`` are factors, ``pitch`` is added in espeak's units of 0 to 99, ``range`` is a factor of the
    pitch range, ``pause`` is silence in seconds inside the sentence, ``tremor`` the depth of a 7 Hz amplitude wobble.
    """

    rate: float
    pitch: float
    range: float
    loudness: float
    pause: float = 0.0
    tremor: float = 0.0


PROSODY: dict[str, Prosody] = {
    "neutral": Prosody(1.0, 0.0, 1.0, 1.0),
    "joy": Prosody(1.25, 16.0, 1.9, 1.2),
    "sadness": Prosody(0.62, -18.0, 0.3, 0.4, pause=0.3),
    "anger": Prosody(1.2, -6.0, 0.9, 2.0),
    "fear": Prosody(1.55, 24.0, 0.5, 0.55, pause=0.05, tremor=0.75),
    "surprise": Prosody(0.78, 30.0, 2.3, 1.4, pause=0.15),
}


@dataclass(frozen=True)
class Voice:
    """A speaker's baseline: an espeak variant (``m1``, ``f2``, …), pitch, words per minute, loudness."""

    variant: str
    pitch: float
    rate: float
    loudness: float


class Synthesiser:
    """espeak-ng in this process, one utterance at a time.

    The library seeds its noise from the clock, and its oscillators keep their state between utterances, even after
    ``espeak_Terminate``. It is therefore reloaded for every utterance (about 10 ms), so that the result depends on the
    arguments only.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError("speaking needs espeakng-loader: pip install 'llm-mer[media]'") from None
        self._path = espeakng_loader.get_library_path()
        self._data = str(Path(espeakng_loader.get_data_path()).parent)
        with self._loaded() as (_, rate):
            self.rate = rate

    @contextmanager
    def _loaded(self) -> Iterator[tuple[Any, int]]:
        library = ctypes.CDLL(self._path)
        try:
            rate = int(library.espeak_Initialize(SYNCHRONOUS, 0, self._data.encode(), 0))
            if rate <= 0:
                raise UserError(f"espeak-ng could not be started with the data in {self._data}")
            yield library, rate
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)

    def synthesise(
        self, text: str, language: str, variant: str, rate: float, pitch: float, pitch_range: float, seed: int = 0
    ) -> np.ndarray:
        """Speech as float32 in [-1, 1] at :attr:`rate`. Raises :class:`UserError` if the voice does not exist."""
        blocks: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def collect(samples: Any, count: int, _events: Any) -> int:
            if samples and count > 0:
                blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback = kind(collect)  # keep a reference: the library holds a bare pointer to it
        name = f"{VOICES[language]}+{variant}"
        with self._loaded() as (library, _):
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(name.encode()) != 0:
                raise UserError(f"espeak-ng has no voice {name!r}")
            for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range), (VOLUME, 100)):
                library.espeak_SetParameter(parameter, round(value), 0)
            data = text.encode() + b"\0"
            library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, UTF8, None, None)
            library.espeak_Synchronize()
        if not blocks:
            raise UserError(f"espeak-ng produced no speech for {text!r}")
        return np.concatenate(blocks).astype(np.float32) / 32768.0


def trim(samples: np.ndarray, threshold: float = 0.005) -> np.ndarray:
    """Cut leading and trailing silence."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def split_in_half(text: str, language: str) -> list[str]:
    """Split a sentence into two halves at a word boundary, for a pause in between."""
    if language == "zh":
        return [text[: len(text) // 2], text[len(text) // 2 :]] if len(text) >= 6 else [text]
    words = text.split()
    return [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])] if len(words) >= 4 else [text]


def speak(
    synthesiser: Synthesiser, text: str, language: str, voice: Voice, emotion: str, intensity: float, seed: list[int]
) -> np.ndarray:
    """Synthesise a sentence in a speaker's voice with an emotion's prosody scaled by ``intensity`` (0 to 1), with jitter."""
    generator = np.random.default_rng(seed)
    prosody = PROSODY[emotion]
    scale = intensity * generator.uniform(0.8, 1.2)
    jitter = generator.normal(0.0, 1.0, 4)

    def factor(value: float, noise: float) -> float:
        return float(np.exp(np.log(value) * scale + noise))

    rate = np.clip(voice.rate * factor(prosody.rate, 0.05 * jitter[0]), 90, 330)
    pitch = np.clip(voice.pitch + prosody.pitch * scale + 3.0 * jitter[1], 5, 99)
    pitch_range = np.clip(45 * factor(prosody.range, 0.12 * jitter[2]), 5, 99)
    loudness = voice.loudness * factor(prosody.loudness, 0.12 * jitter[3])
    pause = prosody.pause * scale
    parts = split_in_half(text, language) if pause > 0.05 else [text]
    noise = int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1
    recordings = [
        trim(synthesiser.synthesise(part, language, voice.variant, rate, pitch, pitch_range, noise)) for part in parts
    ]
    gap = np.zeros(int(pause * synthesiser.rate), dtype=np.float32)
    speech = recordings[0] if len(recordings) == 1 else np.concatenate([recordings[0], gap, recordings[1]])
    if prosody.tremor:
        seconds = np.arange(len(speech)) / synthesiser.rate
        speech = speech * (1 - prosody.tremor * scale * (0.5 + 0.5 * np.sin(2 * np.pi * 7 * seconds)))
    silence = np.zeros(int(0.12 * synthesiser.rate), dtype=np.float32)
    samples = np.concatenate([silence, speech * loudness, silence])
    samples = samples + generator.normal(0.0, 0.0015, len(samples))
    return np.clip(samples, -1.0, 1.0).astype(np.float32)
