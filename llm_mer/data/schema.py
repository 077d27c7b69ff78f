"""The in-memory representation of an utterance and of decoded video frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llm_mer.data.utterance_fields import read_fields
from llm_mer.data.votes import Votes, read_votes
from llm_mer.errors import UserError
from llm_mer.prompting.languages import detect_language, has_letters

SPLITS: tuple[str, ...] = ("train", "valid", "test")


@dataclass
class Utterance:
    """One spoken turn with everything known about it. Only ``id`` and one modality are required.

    Names (``id``, ``dialogue_id``, ``speaker``, targets, labels, ``tags``) are composed (Unicode NFC); ``text`` is not.

    Attributes:
        id: unique within a dataset.
        split: ``train``, ``valid`` or ``test``.
        language: ``en`` or ``zh``. If left out (or None), it is detected from the transcript by
            :func:`llm_mer.prompting.languages.detect_language`; without a transcript that has letters it stays empty, and
            is refused where the language matters.
        text: transcript, None when unknown (a missing modality).
        audio, vision: media files before extraction (a path each, often the same mp4), None when absent.
        audio_features: ``(T_a, D_a)`` float32 or None. vision_features: ``(T_v, D_v)``. text_features: ``(T_t, D_t)``. Real
            numbers of another kind, lists and torch tensors become arrays.
        labels: ``{task name: class word in English, or score}``, e.g. ``{"emotion": "joy", "sentiment": 1.4}``. A task
            that is absent has no target for this utterance.
        votes: ``{task's target: annotators' votes}`` (:mod:`llm_mer.data.votes`); without a label the majority is the truth.
        dialogue_id, turn, speaker: position in a conversation; ``turn`` orders utterances within ``dialogue_id``.
        tags: named subsets this utterance belongs to, e.g. ``neutral_words``, ``conflict``.
        flags: what extraction found wrong with its recording (:data:`llm_mer.data.flags.FLAGS`), e.g. ``silence``.

    Raises:
        UserError: a field of another kind (:func:`llm_mer.data.utterance_fields.read_fields`), or a transcript whose
            language cannot be told.
    """

    id: str
    split: str = "train"
    language: str = ""
    text: str | None = None
    audio: str | None = None
    vision: str | None = None
    text_features: np.ndarray | None = None
    audio_features: np.ndarray | None = None
    vision_features: np.ndarray | None = None
    labels: dict[str, str | float] = field(default_factory=dict)
    dialogue_id: str | None = None
    turn: int | None = None
    speaker: str | None = None
    tags: tuple[str, ...] = ()
    votes: dict[str, Votes] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in read_fields(vars(self)).items():
            setattr(self, name, value)
        self.votes = read_votes(self.votes, f"utterance {self.id!r}: votes")
        if not self.language:
            try:
                self.language = detect_language(self.text) if has_letters(self.text) else ""
            except UserError as error:
                raise UserError(f"utterance {self.id!r}: {error}") from None


SAMPLE_RATE = 16_000
"""Sample rate of all decoded audio, in Hz."""


@dataclass
class Frames:
    """Video frames at regular times: ``pixels (F, h, w, 3)`` uint8 RGB, ``fps`` frames per second."""

    pixels: np.ndarray
    fps: float
