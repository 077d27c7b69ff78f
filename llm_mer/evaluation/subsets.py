"""Parts of a split that are scored on their own: by tag, by length of the transcript, by place in the conversation."""

from __future__ import annotations

from collections.abc import Sequence

from llm_mer.data.utterance_fields import EVERYTHING as EVERYTHING
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction

TAG, LENGTH, TURN = "tag", "length", "turn"
GROUPINGS: tuple[str, ...] = (LENGTH, TURN)
LENGTHS: tuple[tuple[int, int | None], ...] = ((1, 5), (6, 10), (11, 20), (21, 40), (41, None))
TURNS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, 4), (5, 9), (10, None))
NO_TRANSCRIPT = "no transcript"


def check_groupings(by: Sequence[str]) -> None:
    """Raises :class:`UserError` for a grouping there is not."""
    unknown = [name for name in by if name not in GROUPINGS]
    if unknown:
        raise UserError(f"--by {unknown[0]!r}; choose from {', '.join(GROUPINGS)}")


def _bin(value: int, bins: Sequence[tuple[int, int | None]]) -> tuple[int, int | None]:
    return next((low, high) for low, high in bins if value >= low and (high is None or value <= high))


def _span(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def length_group(prediction: Prediction) -> str:
    """``length 6-10 words``, in Chinese ``length 6-10 characters``; ``no transcript`` without one."""
    if not prediction.length:
        return NO_TRANSCRIPT
    unit = "characters" if prediction.language == "zh" else "words"
    return f"length {_span(*_bin(prediction.length, LENGTHS))} {unit}"


def turn_group(prediction: Prediction) -> str | None:
    """``turn 1``, ``turns 2-4``, ``turns 5-9`` or ``turns 10+``; None for an utterance without a conversation."""
    if prediction.position is None:
        return None
    low, high = _bin(prediction.position, TURNS)
    return f"turn{'' if low == high else 's'} {_span(low, high)}"


def subset_names(prediction: Prediction, by: str) -> tuple[str, ...]:
    """The subsets of a grouping (``tag``, ``length``, ``turn``) that an answer belongs to."""
    if by == TAG:
        return prediction.tags
    found = length_group(prediction) if by == LENGTH else turn_group(prediction)
    return () if found is None else (found,)


def subsets_of(predictions: Sequence[Prediction], by: Sequence[str] = ()) -> list[tuple[str, str]]:
    """``(grouping, subset)``: every tag that occurs, then every group of the groupings asked for, from low to high."""
    tags = sorted({tag for p in predictions for tag in p.tags})
    found = [(TAG, tag) for tag in tags]
    for grouping in by:
        measure = {
            name: (p.language == "zh", p.length or 0) if grouping == LENGTH else (False, p.position or 0)
            for p in predictions
            for name in subset_names(p, grouping)
        }
        found += [(grouping, name) for name in sorted(measure, key=lambda name: measure[name])]
    return found
