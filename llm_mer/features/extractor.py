"""Extracting the features of one utterance according to the settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_mer.data.feature_settings import NGRAMS, NONE, FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.features.acoustic import EXTRACTORS, AcousticExtractor
from llm_mer.features.flags import find_picture_flags, find_sound_flags
from llm_mer.features.media import MediaError, read_audio, read_frames
from llm_mer.features.visual import HogFlow, Landmarks, VisualExtractor


@dataclass
class Rejected:
    """A file that could not be used."""

    id: str
    field: str
    file: str
    reason: str
    message: str


@dataclass
class Extracted:
    """Features of one utterance by modality, the files that were rejected, and what is wrong with those that were not."""

    features: dict[str, np.ndarray]
    rejected: list[Rejected]
    flags: list[str] = field(default_factory=list)


class Extractor:
    """Loads the extractors that the settings name, once, and turns utterances into features."""

    def __init__(self, settings: FeatureSettings) -> None:
        settings.check()
        self.settings = settings
        self.audio: AcousticExtractor | None = None
        self.vision: VisualExtractor | None = None
        self.text: Any = None
        if settings.audio in EXTRACTORS:
            self.audio = EXTRACTORS[settings.audio](settings.audio_rate)
        elif settings.audio != NONE:
            from llm_mer.encoders.pretrained import SpeechEncoder

            self.audio = SpeechEncoder(settings.audio, settings.device)
        if settings.vision == "hog_flow":
            self.vision = HogFlow(settings.face_model)
        elif settings.vision == "landmarks":
            self.vision = Landmarks(settings.landmark_model)
        elif settings.vision != NONE:
            from llm_mer.encoders.pretrained import ImageEncoder

            self.vision = ImageEncoder(settings.vision, settings.device)
        if settings.text == NGRAMS:
            from llm_mer.features.ngrams import HashedNgrams

            self.text = HashedNgrams()
        elif settings.text != NONE:
            from llm_mer.encoders.pretrained import TextEncoder

            self.text = TextEncoder(settings.text, settings.device)

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of the feature dimensions of each modality that is extracted."""
        parts = {"audio": self.audio, "vision": self.vision, "text": self.text}
        return {modality: part.names for modality, part in parts.items() if part is not None}

    def __call__(self, utterance: Utterance) -> Extracted:
        """Features of every modality the utterance has; a file that fails is in ``rejected``."""
        found = Extracted({}, [])
        if self.audio is not None and utterance.audio is not None:
            audio, path = self.audio, utterance.audio

            def hear() -> np.ndarray:
                samples = read_audio(path)
                found.flags += find_sound_flags(samples)
                return audio(samples)

            self._try_extract(found, utterance, "audio", path, hear)
        if self.vision is not None and utterance.vision is not None:
            vision, file, fps = self.vision, utterance.vision, self.settings.vision_fps

            def look() -> np.ndarray:
                frames = read_frames(file, fps)
                found.flags += find_picture_flags(frames)
                return vision(frames)

            self._try_extract(found, utterance, "vision", file, look)
        if self.text is not None and utterance.text:
            encoder, words = self.text, utterance.text
            self._try_extract(found, utterance, "text", "transcript", lambda: encoder(words))
        return found

    @staticmethod
    def _try_extract(found: Extracted, utterance: Utterance, name: str, path: str, work: Callable[[], np.ndarray]) -> None:
        try:
            features = work()
        except MediaError as error:
            found.rejected.append(Rejected(utterance.id, name, path, error.reason, str(error)))
        except Exception as error:
            # Any exception, on purpose: the descriptors are third-party code (OpenCV, openSMILE, librosa, MediaPipe,
            # transformers), each with its own exceptions. A file on which one fails is recorded in the quarantine and
            # must not end a run over thousands of files. KeyboardInterrupt and SystemExit still do.
            message = str(error) or type(error).__name__
            found.rejected.append(Rejected(utterance.id, name, path, "descriptor_failed", f"{path}: {message}"))
        else:
            if features.ndim != 2 or not features.size:
                message = f"{path}: features have shape {features.shape}"
                found.rejected.append(Rejected(utterance.id, name, path, "descriptor_failed", message))
            elif not np.isfinite(features).all():
                found.rejected.append(Rejected(utterance.id, name, path, "not_finite", f"{path}: features hold NaN"))
            else:
                found.features[name] = features


def with_features(utterance: Utterance, found: Extracted) -> Utterance:
    """The utterance with features and flags filled in."""
    # Any: the fields are known by name only.
    changes: dict[str, Any] = {f"{modality}_features": values for modality, values in found.features.items()}
    return dataclasses.replace(utterance, flags=(*utterance.flags, *found.flags), **changes)


_extractors: dict[str, Extractor] = {}
"""One per process and setting, loaded with the first utterance."""


def extract_one(utterance: Utterance, settings: FeatureSettings) -> Utterance:
    """Extract the features of one utterance (inference). Extractors are reused by the next call with the same settings.

    Raises:
        MediaError, UserError: the first file that cannot be used.
    """
    key = json.dumps(settings.to_dict(), sort_keys=True)
    if key not in _extractors:
        _extractors[key] = Extractor(settings)
    found = _extractors[key](utterance)
    if found.rejected:
        raise UserError(f"utterance {utterance.id!r}: {found.rejected[0].message}")
    return with_features(utterance, found)
