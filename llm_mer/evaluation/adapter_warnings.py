"""What is worth a warning in the answers over a data set: the adapter's own diagnostics, and what it did not read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llm_mer.adapters.base import FusionAdapter
from llm_mer.data.flags import count_flags
from llm_mer.data.speaker_effects import FEW_UTTERANCES
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.unread import describe_unread

EXPECTED_FAR = 0.1
"""Share of a split like the training data that may lie far from it; by construction 0.01 of the validation split does."""


def diagnose(adapter: nn.Module, predictions: Sequence[Prediction]) -> list[str]:
    """What the adapter finds worth warning about in its own diagnostics over a dataset."""
    if not predictions or not isinstance(adapter, FusionAdapter):
        return []
    names = set.intersection(*(set(p.diagnostics) for p in predictions))
    stacked: dict[str, Tensor] = {}
    for name in names:
        rows = [np.asarray(p.diagnostics[name], dtype=np.float32) for p in predictions]
        if len({row.shape for row in rows}) == 1:
            stacked[name] = torch.from_numpy(np.stack(rows))
    return adapter.warnings_from(stacked)


def find_cut(predictions: Sequence[Prediction]) -> list[str]:
    """What to say of utterances that are longer than the adapter reads, one line a modality."""
    utterances = {(p.language, p.id): p.cut for p in predictions}
    found = []
    for modality in sorted({name for cut in utterances.values() for name in cut}):
        pairs = [cut[modality] for cut in utterances.values() if modality in cut]
        unit = "tokens" if modality == "text" else "steps"
        found.append(
            f"{modality} of {len(pairs)} of {len(utterances)} utterances is longer than the {pairs[0][0]} {unit} that the "
            f"adapter reads, at most {max(given for _, given in pairs)}: what comes after them was not read"
        )
    return found


def find_little_known_speakers(predictions: Sequence[Prediction]) -> list[str]:
    """What to say of utterances whose speakers are hardly known to a checkpoint that normalises by speaker."""
    known = {(p.language, p.id): p.speaker_utterances for p in predictions if p.speaker_utterances is not None}
    few = sum(count < FEW_UTTERANCES for count in known.values() if count is not None)
    if not few:
        return []
    return [
        f"the speakers of {few} of {len(known)} utterances are known from fewer than {FEW_UTTERANCES} utterances each: "
        "features were normalised by speaker with little to go by"
    ]


def find_far(predictions: Sequence[Prediction]) -> list[str]:
    """What to say of utterances far from the training data, one line a modality, if they are many."""
    utterances = {(p.language, p.id): p.training_distance for p in predictions if p.training_distance}
    found = []
    for modality in sorted({name for distances in utterances.values() for name in distances}):
        known = [distances[modality] for distances in utterances.values() if modality in distances]
        far = sum(distance > 1 for distance in known)
        if far > EXPECTED_FAR * len(known):
            found.append(
                f"{modality} of {far} of {len(known)} utterances is farther from the training data than 99 % of the "
                "validation utterances: see the rows by distance"
            )
    return found


def find_unread(predictions: Sequence[Prediction]) -> list[str]:
    """What to say of features and transcripts that are given and not read, one line for all of them."""
    utterances = {(p.language, p.id): p.unread for p in predictions}
    parts = sorted({part for unread in utterances.values() for part in unread})
    if not parts:
        return []
    count, what = sum(bool(unread) for unread in utterances.values()), describe_unread(parts)
    return [f"{what} of {count} of {len(utterances)} utterances are given, and this checkpoint reads none of it"]


def find_flags(predictions: Sequence[Prediction]) -> list[str]:
    """What to say of recordings that are flagged, one line for all of them."""
    counted = count_flags({(p.language, p.id): p.flags for p in predictions}.values())
    return [f"flags of {counted}; their scores stand apart"] if counted else []
