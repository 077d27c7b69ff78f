"""How the features of a data set were made: stored with them, and with every checkpoint trained on them."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_mer.errors import UserError

NONE, NGRAMS = "none", "ngrams"


@dataclass
class FeatureSettings:
    """How features are made. Stored with the features and with every checkpoint trained on them."""

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
            "help": "hog_flow (gradients and optical flow of the face), landmarks (MediaPipe, needs --landmark-model), a "
            "picture encoder by hub name or folder (CLIP), or none"
        },
    )
    text: str = field(
        default=NONE,
        metadata={
            "help": "none (the backbone embeds the transcript), ngrams (hashed character n-grams, no model needed), or a "
            "text encoder by hub name or folder (RoBERTa, BERT)"
        },
    )
    audio_rate: float = field(default=12.5, metadata={"help": "acoustic descriptor steps a second (at most 100)"})
    vision_fps: float = field(default=6.0, metadata={"help": "pictures a second"})
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
                raise UserError(f"device is {self.device!r}; it must be cpu, cuda, cuda:0 or another of torch's") from None
        if (self.audio, self.vision, self.text) == (NONE, NONE, NONE):
            raise UserError("audio, vision and text are all none: there is nothing to extract")

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
