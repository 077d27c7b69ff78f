"""How much of a clip a model reads, in steps and in seconds, and what to do about a longer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_mer.adapters.base import FusionAdapter
from llm_mer.data.dataset import MerDataset
from llm_mer.data.feature_settings import steps_per_second
from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError
from llm_mer.model.processing_mer import MerProcessor


@dataclass(frozen=True)
class StepLimits:
    """The most steps of audio and vision features that a model reads.

    Attributes:
        steps: ``{modality: steps}``; a modality of which no steps are read is absent. An adapter that reads utterance
            vectors alone has none: they are made of the whole clip.
        rates: ``{modality: steps a second}`` where it is known how the features were made.
    """

    steps: dict[str, int]
    rates: dict[str, float]

    @classmethod
    def of(cls, processor: MerProcessor, adapter: FusionAdapter, features: Mapping[str, Any] | None) -> StepLimits:
        """Those of a processor and its adapter; ``features`` are the settings by which the features were made."""
        most = {"audio": processor.max_audio_steps, "vision": processor.max_vision_steps}
        own = adapter.step_limit
        steps = {m: limit if own is None else min(limit, own) for m, limit in most.items() if m in processor.feature_sizes}
        return cls({m: limit for m, limit in steps.items() if limit}, steps_per_second(features))

    @property
    def seconds(self) -> float | None:
        """The longest clip that is read whole; None where no steps are read or their rate is unknown."""
        if not self.steps or not set(self.steps) <= set(self.rates):
            return None
        return min(limit / self.rates[modality] for modality, limit in self.steps.items())

    def lengths(self, utterance: Utterance) -> dict[str, int]:
        """Steps of the modalities that have a limit and are given."""
        given = {m: getattr(utterance, FEATURE_COLUMNS[m]) for m in self.steps}
        return {m: len(sequence) for m, sequence in given.items() if sequence is not None}

    def excess(self, lengths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """``{modality: (read, given)}`` of what is longer than is read."""
        return {m: (self.steps[m], given) for m, given in lengths.items() if given > self.steps[m]}

    def describe(self, excess: Mapping[str, tuple[int, int]]) -> str:
        """``590.0 s of audio (7375 steps), of which the first 32.0 s (400 steps) are read: 558.0 s would be lost``."""
        parts = []
        for modality, (read, given) in excess.items():
            rate = self.rates.get(modality)
            if rate is None:
                parts.append(
                    f"{given} steps of {modality}, of which the first {read} are read: {given - read} would be lost"
                )
            else:
                parts.append(
                    f"{given / rate:.1f} s of {modality} ({given} steps), of which the first {read / rate:.1f} s ({read} "
                    f"steps) are read: {(given - read) / rate:.1f} s would be lost"
                )
        return "; ".join(parts)


def check_dataset_lengths(dataset: MerDataset, limits: StepLimits, where: str, remedy: Callable[[], str]) -> None:
    """Refuse a data set with utterances of which only the beginning would be read. Features are not read for it.

    Raises:
        UserError: naming the one that would lose most, what it would lose, how many there are, and the remedy.
    """
    steps = {modality: dataset.steps(modality) for modality in limits.steps}
    asked = sorted({question.row for question in dataset.questions})
    long = {row: found for row in asked if (found := limits.excess({m: steps[m][row] for m in steps}))}
    if not long:
        return

    def lost(row: int) -> float:
        return max((given - read) / limits.rates.get(m, 1.0) for m, (read, given) in long[row].items())

    worst = max(long, key=lost)
    raise UserError(
        f"{where}: {len(long)} of {len(asked)} utterances are longer than is read, e.g. {dataset.identifier(worst)!r}: "
        f"{limits.describe(long[worst])}; {remedy()}"
    )


def training_remedy(limits: StepLimits, dataset: MerDataset, adapter: FusionAdapter) -> str:
    """What to do where a training split has too long utterances: the options that read the longest whole, or cutting."""
    longest = {m: max(dataset.steps(m), default=0) for m in limits.steps}
    options = [f"max_{m}_steps: {longest[m]}" for m, limit in limits.steps.items() if longest[m] > limit]
    if adapter.step_limit is not None:
        options.append(f"max_frames: {max(longest.values())}")
    return f"say {' and '.join(options)} to read them whole, split the clips, or say long_clips: cut to read the beginnings"
