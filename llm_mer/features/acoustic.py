"""Acoustic low-level descriptors."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm_mer.data.schema import SAMPLE_RATE
from llm_mer.errors import UserError

OPENSMILE_NOTICE = (
    "openSMILE eGeMAPSv02 is under the audEERING research licence (non-commercial; see the opensmile package); "
    "--audio librosa is the free alternative"
)
FRAME_RATE = 100
"""Low-level descriptors per second, before pooling."""


class AcousticExtractor(Protocol):
    """Samples at 16 kHz to ``(T, D)``."""

    names: list[str]

    def __call__(self, samples: np.ndarray) -> np.ndarray: ...


def mean_pool(frames: np.ndarray, rate: float) -> np.ndarray:
    """Mean over consecutive frames, 100 to ``rate`` per second: ``(T, D) -> (ceil(T / n), D)``, n = 100 / rate."""
    width = max(round(FRAME_RATE / rate), 1)
    starts = np.arange(0, len(frames), width)
    counts = np.diff(np.append(starts, len(frames)))[:, None]
    return (np.add.reduceat(frames, starts, axis=0) / counts).astype(np.float32)


class Egemaps:
    """The 25 low-level descriptors of eGeMAPSv02 (openSMILE), 100 per second, mean-pooled to ``rate``.

    Loudness, F0 in semitones, jitter, shimmer, HNR, spectral balance, MFCC 1-4, formants. Under the audEERING research
    licence, see :data:`OPENSMILE_NOTICE`.
    """

    def __init__(self, rate: float) -> None:
        try:
            import opensmile
        except ImportError:
            raise UserError("--audio egemaps needs openSMILE: pip install 'llm-mer[media]', or --audio librosa") from None
        self.rate = rate
        self._smile: Any = opensmile.Smile(
            feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=opensmile.FeatureLevel.LowLevelDescriptors
        )
        self.names = list(self._smile.feature_names)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        frames = self._smile.process_signal(samples, SAMPLE_RATE).to_numpy(dtype=np.float32)
        return mean_pool(np.nan_to_num(frames), self.rate)


class LogMelPitch:
    """librosa's 40 log-mel bands with F0 (YIN, in octaves above 55 Hz), voicing and log energy, mean-pooled to ``rate``.

    F0 is 0 in unvoiced frames: energy below 5 % of the clip's loudest frame, or a pitch at the search limits.
    """

    BANDS, LOW, HIGH = 40, 60.0, 500.0

    def __init__(self, rate: float) -> None:
        try:
            import librosa
        except ImportError:
            raise UserError("--audio librosa needs librosa: pip install 'llm-mer[media]'") from None
        self._librosa: Any = librosa
        self.rate = rate
        self.names = [f"log_mel_{i}" for i in range(self.BANDS)] + ["f0_octaves", "voiced", "log_energy"]
        self._compile()

    def _compile(self) -> None:
        """Let only one process at a time compile librosa's functions into numba's cache.

        Processes that compile concurrently may leave inconsistent files in the cache, after which every call in this
        installation ends in a segmentation fault (numba issue 10128).
        """
        from filelock import FileLock

        with FileLock(Path(tempfile.gettempdir()) / f"llm-mer-librosa-{os.getuid()}.lock"):
            self(np.sin(np.arange(SAMPLE_RATE // 4, dtype=np.float32)))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        librosa, hop = self._librosa, SAMPLE_RATE // FRAME_RATE
        padded = np.pad(samples, (0, max(0, 2048 - len(samples))))
        mel = librosa.feature.melspectrogram(y=padded, sr=SAMPLE_RATE, n_fft=512, hop_length=hop, n_mels=self.BANDS)
        energy = librosa.feature.rms(y=padded, frame_length=512, hop_length=hop)[0]
        pitch = librosa.yin(padded, fmin=self.LOW, fmax=self.HIGH, sr=SAMPLE_RATE, frame_length=1024, hop_length=hop)
        steps = min(mel.shape[1], len(energy), len(pitch))
        mel, energy, pitch = mel[:, :steps], energy[:steps], pitch[:steps]
        voiced = (energy > 0.05 * energy.max()) & (pitch > 1.02 * self.LOW) & (pitch < 0.98 * self.HIGH)
        octaves = np.where(voiced, np.log2(np.maximum(pitch, 1.0) / 55.0), 0.0)
        columns = [np.log(mel.T + 1e-6), octaves[:, None], voiced[:, None], np.log(energy[:, None] + 1e-5)]
        return mean_pool(np.concatenate(columns, axis=1).astype(np.float32), self.rate)


EXTRACTORS: dict[str, type[Egemaps] | type[LogMelPitch]] = {"egemaps": Egemaps, "librosa": LogMelPitch}
