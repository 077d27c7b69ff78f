"""What is worth a warning in what a model is given, each said once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from llm_mer.data.flags import FLAGS
from llm_mer.data.schema import Utterance
from llm_mer.inference.unread import describe_unread

logger = logging.getLogger(__name__)

WARNED = 1.25
"""The distance from the training data that is worth a warning: a few of a hundred utterances like them lie just beyond 1."""


class InputWarnings:
    """Remembers what it has said, so that a long list of utterances is not a long list of warnings."""

    def __init__(self) -> None:
        self._unread: set[str] = set()
        self._cut: set[str] = set()
        self._flags: set[str] = set()
        self._far: set[str] = set()

    def unread(self, unread: Sequence[Sequence[str]]) -> None:
        """Say what is given and not read."""
        if new := sorted({part for parts in unread for part in parts} - self._unread):
            self._unread.update(new)
            logger.warning("%s are given, and this checkpoint reads none of it", describe_unread(new))

    def cut(self, cuts: Sequence[Mapping[str, tuple[int, int]]]) -> None:
        """Say of each modality that only the beginning of a longer one is read."""
        for modality in sorted({name for cut in cuts for name in cut} - self._cut):
            self._cut.add(modality)
            logger.warning("only the beginning of a long %s is read; `cut` of an answer says how much", modality)

    def flags(self, utterances: Sequence[Utterance]) -> None:
        """Say what each flag means, and of which utterance it was said first."""
        for utterance in utterances:
            for flag in utterance.flags:
                if flag not in self._flags:
                    self._flags.add(flag)
                    logger.warning("utterance %r: %s (%s); `flags` of an answer says so", utterance.id, flag, FLAGS[flag])

    def distance(self, ids: Sequence[str], distances: Sequence[Mapping[str, float]]) -> None:
        """Name the first utterance whose modality is far from the training data."""
        for identifier, found in zip(ids, distances, strict=True):
            new = {m: distance for m, distance in found.items() if distance > WARNED and m not in self._far}
            self._far.update(new)
            for modality, distance in new.items():
                logger.warning(
                    "utterance %r: its %s is %.1f times as far from the training data as 99 %% of the validation utterances "
                    "lie; no score says how well such are answered (said once, training_distance tells of each answer)",
                    identifier,
                    modality,
                    distance,
                )
