"""The single policy for missing, NaN, infinite and zero values in data. Docs: *Missing values* in ``docs/data-sets.md``.

* A **missing modality** is left out (None). Adapters know that it is missing, which is not the same as zeros.
* A **missing label** is left out. NaN or infinity as a label is refused.
* **NaN and infinity in features** are refused: ``validate`` counts them, a store is not written with them, and neither
  training nor inference accepts them. They are never replaced by a number unless requested.
* Published files that mark gaps in this way (MMSA's: −∞ in audio, NaN in vision) can be read with ``--missing_values zero``,
  as their own loader does; the number of replaced values is logged.
* **Zeros are values**, as published. A modality that is zero throughout gets a warning from ``validate``.
* A **transcript** of only white space or invisible characters is refused: leave an unknown one out.
* Padding is not a value: it is masked, and nothing reads it.
"""

from __future__ import annotations

import math

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.prompting.text_forms import is_blank

REFUSE, ZERO = "refuse", "zero"
MISSING_VALUES: tuple[str, ...] = (REFUSE, ZERO)
"""How a reader of published files treats NaN and infinity that its format uses for gaps."""


def check_values(features: np.ndarray, where: str) -> None:
    """Raises :class:`UserError` for ``(steps, size)`` features without a step, or with NaN or infinity in float32."""
    if not features.size:
        raise UserError(f"{where} has shape {features.shape}, which is empty; leave a missing modality out")
    with np.errstate(over="ignore"):
        values = np.asarray(features, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{where} holds NaN or infinity in float32")


def check_sequence(features: np.ndarray, size: int | None, where: str) -> None:
    """:func:`check_values` of features a model reads, ``size`` a step; None where any size is right.

    Raises:
        UserError: naming ``where``: another shape, no step at all, or NaN or infinity in float32.
    """
    if features.ndim != 2 or size not in (None, features.shape[1]):
        right = "it must be (steps, size)" if size is None else f"the model was trained on {size} features a step"
        raise UserError(f"{where} has shape {features.shape}, {right}")
    check_values(features, where)


def check_labels(utterance: Utterance) -> None:
    """Raises :class:`UserError` for a label that is NaN or infinite; unknown labels are to be left out."""
    for name, value in utterance.labels.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"utterance {utterance.id!r}: label {name!r} is {value}; leave a missing label out")


def check_transcript(text: str | None, where: str) -> None:
    """Raises :class:`UserError` for a transcript that has characters but no visible ones."""
    if text and is_blank(text):
        raise UserError(f"{where}: the transcript {text[:20]!r} is blank; leave an unknown transcript out")


def fill_gaps(values: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, int]:
    """Replace ``values`` by 0 where ``gaps`` is True; also returns their number."""
    return np.where(gaps, np.float32(0), values), int(gaps.sum())
