"""Which answers belong together: utterances of one dialogue, or of one speaker, are not independent of each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
    _drawn: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Clusters:
        """Dialogues where some dialogue has two utterances or more, else speakers likewise, else utterances.

        An answer without a dialogue (or speaker) is a unit of its own. A single unit cannot be resampled, so the next
        smaller one is taken. One name in two languages is one unit: translations of it are not independent.
        """
        utterances = len({p.id for p in predictions})
        for unit, names in (
            (DIALOGUE, [p.dialogue_id for p in predictions]),
            (SPEAKER, [p.speaker for p in predictions]),
        ):
            # A name can never equal a pair, so an answer without one shares its unit with none but its own translation.
            found = cls.named(
                unit, [("", p.id) if name is None else name for p, name in zip(predictions, names, strict=True)]
            )
            if 1 < found.count < utterances:
                return found
        return cls.named(UTTERANCE, [p.id for p in predictions])

    @classmethod
    def named(cls, unit: str, names: Sequence[Hashable]) -> Clusters:
        """Answers of one name are one unit."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return cls(unit, np.array([numbers[name] for name in names], dtype=np.int64), len(numbers))

    @property
    def is_grouped(self) -> bool:
        """Whether any unit has two answers or more."""
        return self.count < len(self.index)

    def take(self, kept: np.ndarray) -> Clusters:
        """The units of the answers that are ``True`` in ``kept`` ``(n,)``; the same object where all are."""
        if kept.all():
            return self
        return self.named(self.unit, self.index[kept].tolist())

    def draw(self, resamples: int, seed: int) -> np.ndarray:
        """How often each unit stands in each resample of as many units as there are: ``(resamples, count)``, read-only.

        Drawn once: every metric and system over the same units has the same resamples.
        """
        key = (resamples, seed)
        if key not in self._drawn:
            even = np.full(self.count, 1 / self.count)
            self._drawn[key] = np.random.default_rng(seed).multinomial(self.count, even, resamples)
            self._drawn[key].flags.writeable = False
        return self._drawn[key]

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'' if self.count == 1 else 's'}"


class HasUnit(Protocol):
    """A row of a table that says what its interval resamples."""

    unit: str


def units_of(rows: Sequence[HasUnit]) -> str:
    """``dialogues``, or ``dialogues and utterances`` where rows differ."""
    return " and ".join(f"{unit}s" for unit in dict.fromkeys(row.unit for row in rows))
