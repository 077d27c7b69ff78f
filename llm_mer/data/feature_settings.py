"""Settings of feature extraction, stored with the features and with every checkpoint trained on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError

NONE, NGRAMS = "none", "ngrams"


@dataclass
class FeatureSettings:
    """Settings of feature extraction."""

    audio: str = field(
        default="egemaps",
        metadata={
            "help": "egemaps (openSMILE eGeMAPSv02, audEERING research licence), librosa (log-mel and F0, free), a speech "
            "encoder by hub name or folder (WavLM, HuBERT, CLAP), or none"
        },
    )
    vision: str = field(
        default="hog_flow",
        metadata={
            "help": "hog_flow (gradients and optical flow of the face), landmarks (MediaPipe, needs --landmark-model), an "
            "image encoder by hub name or folder (CLIP), or none"
        },
    )
    text: str = field(
        default=NONE,
        metadata={
            "help": "none (the backbone embeds the transcript), ngrams (hashed character n-grams, no model needed), or a "
            "text encoder by hub name, folder or short name (RoBERTa, BERT; llm-mer get)"
        },
    )
    audio_rate: float = field(default=12.5, metadata={"help": "acoustic descriptor steps per second (at most 100)"})
    vision_fps: float = field(default=6.0, metadata={"help": "pictures per second"})
    face_model: str | None = field(
        default=None, metadata={"help": "YuNet ONNX file that finds the face (default: frame centre)"}
    )
    landmark_model: str | None = field(default=None, metadata={"help": "MediaPipe face_landmarker.task file"})
    device: str = field(default="cpu", metadata={"help": "where pretrained encoders run"})

    def check(self) -> None:
        """Raises :class:`UserError` naming the option."""
        if not 0 < self.audio_rate <= 100:
            raise UserError(f"audio_rate is {self.audio_rate}; it must lie in (0, 100]")
        if not 0 < self.vision_fps <= 60:
            raise UserError(f"vision_fps is {self.vision_fps}; it must lie in (0, 60]")
        if self.device != "cpu":
            import torch

            try:
                torch.device(self.device)
            except RuntimeError:
                raise UserError(
                    f"device is {self.device!r}; it must be a torch device such as cpu, cuda or cuda:0"
                ) from None
        if (self.audio, self.vision, self.text) == (NONE, NONE, NONE):
            raise UserError("audio, vision and text are all none; there is nothing to extract")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> FeatureSettings:
        """Read :meth:`to_dict` back. Raises :class:`UserError` for fields of another version."""
        unknown = sorted(set(entry) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"feature settings hold unknown fields {unknown}; they come from another version")
        return cls(**entry)


OPTIONS_BY_MODALITY: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "audio_rate"),
    "vision": ("vision", "vision_fps", "face_model", "landmark_model"),
    "text": ("text",),
}
"""The options that determine the features of a modality; ``device`` has no effect on them."""
PATH_OPTIONS = ("face_model", "landmark_model")
"""Options that name a file; only the file name is compared, as the file may be moved."""
SOURCES_WITH_FEATURES = ("mmsa", "mosi", "mosi_csv", "mse_adapter", "casia")
"""Sources whose published files already contain features."""
DESCRIPTORS = ("egemaps", "librosa")
"""Acoustic features that use ``audio_rate``; an encoder has its own rate."""
ENCODER_STEPS_PER_SECOND = 50.0
"""Of the speech encoders that keep time (WavLM, HuBERT, wav2vec 2.0, …): a step every 20 ms."""


def steps_per_second(settings: Mapping[str, Any] | None) -> dict[str, float]:
    """``{modality: steps a second}`` of features that ``llm-mer extract`` made with these settings.

    Args:
        settings: as :meth:`FeatureSettings.to_dict`; None where nobody knows how the features were made.
    """
    if not settings:
        return {}
    rates: dict[str, float] = {}
    if settings.get("audio") not in (None, NONE):
        described = settings["audio"] in DESCRIPTORS
        rates["audio"] = float(settings["audio_rate"]) if described else ENCODER_STEPS_PER_SECOND
    if settings.get("vision") not in (None, NONE):
        rates["vision"] = float(settings["vision_fps"])
    return rates


def check_same_features(
    trained: Mapping[str, Any], given: Mapping[str, Any], modalities: Iterable[str], where: str, model: str
) -> None:
    """Refuse features that were extracted differently from those a model was trained on, though they have the same size.

    Args:
        trained, given: what a checkpoint and a store record about their data: ``features`` as
            :meth:`FeatureSettings.to_dict` if ``llm-mer extract`` made them, ``source`` if they were published with a data
            set. If neither is recorded, nothing is refused.
        modalities: those the model reads. where, model: names of the data and of the model in the message.

    Raises:
        UserError: naming each option with both values.
    """
    trained_settings, given_settings = trained.get("features"), given.get("features")
    if not trained_settings and not given_settings:
        return
    for one, other in ((trained, given), (given, trained)):
        if not one.get("features") and one.get("source") in SOURCES_WITH_FEATURES:
            made = _describe_settings(other["features"])
            published, extracted = (where, model) if one is given else (model, where)
            raise UserError(
                f"{published} has the features published with {one['source']!r}, {extracted} those of `llm-mer extract` "
                f"({made}); use features extracted as those it was trained on"
            )
    if not trained_settings or not given_settings:
        return
    differences = []
    for modality in modalities:
        for name in OPTIONS_BY_MODALITY[modality]:
            if name == "audio_rate" and not {trained_settings.get("audio"), given_settings.get("audio")} <= set(DESCRIPTORS):
                continue
            one, other = (_without_folder(name, settings.get(name)) for settings in (trained_settings, given_settings))
            if one != other:
                differences.append(f"{name} is {other!r}, {model} was trained on {one!r}")
    if differences:
        raise UserError(f"{where}: its features were extracted differently: {'; '.join(differences)}")


def _without_folder(name: str, value: Any) -> Any:
    """A setting without its folder, since an encoder or model file may be moved."""
    is_path = isinstance(value, str) and (name in PATH_OPTIONS or Path(value).is_absolute())
    return Path(value).name if is_path else value


def _describe_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {settings.get(name)}" for name in OPTIONS_BY_MODALITY if settings.get(name) not in (None, NONE)
    )
