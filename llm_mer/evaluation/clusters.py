"""Which answers belong together: utterances of one dialogue, or of one speaker, are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_mer.inference.prediction import Prediction

DIALOGUE, SPEAKER, UTTERANCE = "dialogue", "speaker", "utterance"
FEW = 10
"""With fewer units than this an interval is rough, whatever is done about it."""


@dataclass(frozen=True)
class Clusters:
    """The units that are resampled.

    Attributes:
        unit: ``dialogue``, ``speaker`` or ``utterance``.
        index: the unit of each answer, 0 to ``count`` - 1: ``(n,)``.
        count: how many units there are.
    """

    unit: str
    index: np.ndarray
    count: int

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Clusters:
        """Dialogues where some dialogue has two answers or more, else speakers likewise, else utterances.

        An answer without a dialogue (or speaker) is a unit of its own. A single unit cannot be resampled, so the next
        smaller one is taken. One name in two languages is one dialogue: translations of it are not independent.
        """
        for unit, names in (
            (DIALOGUE, [p.dialogue_id for p in predictions]),
            (SPEAKER, [p.speaker for p in predictions]),
        ):
            # A name can never equal the place of an answer that has none: one is text, the other a number.
            keys: list[str | int] = [place if name is None else name for place, name in enumerate(names)]
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            if 1 < len(numbers) < len(keys):
                return cls(unit, np.array([numbers[key] for key in keys]), len(numbers))
        return cls.utterances(len(predictions))

    @classmethod
    def utterances(cls, n: int) -> Clusters:
        """Every answer for itself."""
        return cls(UTTERANCE, np.arange(n), n)

    def take(self, kept: np.ndarray) -> Clusters:
        """The units of the answers that are ``True`` in ``kept`` ``(n,)``."""
        if self.unit == UTTERANCE:
            return Clusters.utterances(int(kept.sum()))
        present, index = np.unique(self.index[kept], return_inverse=True)
        return Clusters(self.unit, index, len(present))

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"
