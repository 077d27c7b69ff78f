"""Checking that features have the scale that a model was trained on, if it is unknown how they were extracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.statistics import FeatureStatistics
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError

SAMPLED_UTTERANCES = 64
"""Number of utterances, evenly spaced over a split, whose features are compared with a model's statistics."""
OUTLIER_DEVIATIONS, MAX_OUTLIER_SHARE = 10.0, 0.5
"""Features have another scale if more than this share of values lies this many deviations from the training mean."""
CONSTANT_DEVIATION, MAX_CONSTANT_SHARE = 0.01, 0.9
"""Features have another scale if more than this share varies by less than this fraction of the training deviation."""


def check_scale(utterances: Sequence[Utterance], statistics: Mapping[str, FeatureStatistics], where: str) -> None:
    """Refuse features distributed differently from those a model was trained on: another extractor, rate or normalisation.

    A last resort if it is unknown how features were extracted. Already normalised values seem to hardly vary, and raw values
    given to a model trained on normalised ones lie far outside; both would be clipped and answered with confidence.

    Args:
        utterances: of which :data:`SAMPLED_UTTERANCES` are checked. statistics: of the training data, by modality.
        where: start of the message.

    Raises:
        UserError: naming the modality and what was found.
    """
    step = max(len(utterances) // SAMPLED_UTTERANCES, 1)
    chosen = [utterances[row] for row in range(0, len(utterances), step)][:SAMPLED_UTTERANCES]
    for modality, trained in statistics.items():
        found = [values for u in chosen if (values := getattr(u, FEATURE_COLUMNS[modality])) is not None]
        usable = trained.std > 1e-8
        if not found or not usable.any() or any(values.shape[1] != len(trained.mean) for values in found):
            continue  # a wrong size is reported elsewhere
        z_scores = (np.concatenate(found)[:, usable].astype(np.float64) - trained.mean[usable]) / trained.std[usable]
        outlier_share = float((np.abs(z_scores) > OUTLIER_DEVIATIONS).mean())
        # Copies of one clip do not vary at all, which is no sign of another scale.
        distinct = len({values.tobytes() for values in found}) > 1
        constant_share = float((z_scores.std(axis=0) < CONSTANT_DEVIATION).mean()) if distinct else 0.0
        if outlier_share > MAX_OUTLIER_SHARE or constant_share > MAX_CONSTANT_SHARE:
            limit = f"{CONSTANT_DEVIATION:.0%} of what they do in training"
            finding = f"{constant_share:.0%} of its features vary by less than {limit}"
            if outlier_share > MAX_OUTLIER_SHARE:
                finding = (
                    f"{outlier_share:.0%} of its values lie more than {OUTLIER_DEVIATIONS:.0f} standard deviations away"
                )
            raise UserError(
                f"{where}: {modality} features have another scale than those the model was trained on: {finding}; were they "
                "made by another extractor, at another sample rate, or normalised?"
            )
