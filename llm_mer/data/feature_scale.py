"""Whether features are of the scale that a model was trained on, where nobody says how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.statistics import FeatureStatistics
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError

SAMPLE = 64
"""Utterances of a split, evenly over it, whose features are compared with a model's statistics."""
BEYOND, MOST_BEYOND = 10.0, 0.5
"""Share of values so many standard deviations from the training's mean above which features are of another scale."""
STILL, MOST_STILL = 0.01, 0.9
"""Share of features that vary by less than this part of the training's deviation above which they are of another scale."""


def check_scale(utterances: Sequence[Utterance], statistics: Mapping[str, FeatureStatistics], where: str) -> None:
    """Refuse features that lie elsewhere than those a model was trained on: another extractor, rate or normalisation.

    A last resort where nobody says how features were made. Values normalised already look as if they hardly varied, raw
    ones asked of a model of normalised ones lie far outside; both are clipped, and answered with confidence.

    Args:
        utterances: of which :data:`SAMPLE` are looked at. statistics: of the training, by modality. where: of the message.

    Raises:
        UserError: naming the modality and what was found.
    """
    step = max(len(utterances) // SAMPLE, 1)
    chosen = [utterances[place] for place in range(0, len(utterances), step)][:SAMPLE]
    for modality, known in statistics.items():
        found = [values for u in chosen if (values := getattr(u, FEATURE_COLUMNS[modality])) is not None]
        usable = known.std > 1e-8
        if not found or not usable.any() or any(values.shape[1] != len(known.mean) for values in found):
            continue  # a wrong size is told elsewhere
        steps = (np.concatenate(found)[:, usable].astype(np.float64) - known.mean[usable]) / known.std[usable]
        beyond = float((np.abs(steps) > BEYOND).mean())
        # The same clip several times over varies by nothing, and is no sign of another scale.
        several = len({values.tobytes() for values in found}) > 1
        still = float((steps.std(axis=0) < STILL).mean()) if several else 0.0
        if beyond > MOST_BEYOND or still > MOST_STILL:
            told = (
                f"{beyond:.0%} of its values lie more than {BEYOND:.0f} standard deviations from the training's mean"
                if beyond > MOST_BEYOND
                else f"{still:.0%} of its features vary by less than {STILL:.0%} of what they do in training"
            )
            raise UserError(
                f"{where}: {modality} features are of another scale than those the model was trained on: {told}; were they "
                "made by another extractor, at another sample rate, or normalised?"
            )
