"""Parts of a split that are scored on their own: by tag, by length of the transcript, by place in the conversation."""

from __future__ import annotations

from collections.abc import Sequence

from llm_mer.data.utterance_fields import EVERYTHING as EVERYTHING
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction

TAG, LENGTH, TURN, DISTANCE, FLAG = "tag", "length", "turn", "distance", "flag"
GROUPINGS: tuple[str, ...] = (LENGTH, TURN, DISTANCE)
LENGTHS: tuple[tuple[int, int | None], ...] = ((1, 5), (6, 10), (11, 20), (21, 40), (41, None))
TURNS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, 4), (5, 9), (10, None))
DISTANCES: tuple[tuple[float, str], ...] = (
    (1.0, "within the training range"),
    (1.5, "up to 1.5 × the training range"),
    (float("inf"), "beyond 1.5 × the training range"),
)
"""Upper bounds of the distance from the training data, and what lies below each."""
NO_TRANSCRIPT = "no transcript"
FLAGGED, UNFLAGGED = "flagged recordings", "other recordings"
"""Utterances with a flag (:mod:`llm_mer.data.flags`), and those without any."""


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


def _distance_bin(prediction: Prediction) -> int | None:
    """Which of :data:`DISTANCES`, by the modality that is farthest; None where no distance is known."""
    if not prediction.training_distance:
        return None
    farthest = max(prediction.training_distance.values())
    return next(number for number, (bound, _) in enumerate(DISTANCES) if farthest <= bound)


def distance_group(prediction: Prediction) -> str | None:
    """``within the training range`` and farther, of the modality that is farthest; None where no distance is known."""
    number = _distance_bin(prediction)
    return None if number is None else DISTANCES[number][1]


def subset_names(prediction: Prediction, by: str) -> tuple[str, ...]:
    """The subsets of a grouping (``tag``, ``flag``, ``length``, ``turn``, ``distance``) that an answer belongs to."""
    if by == TAG:
        return prediction.tags
    if by == FLAG:
        return (FLAGGED if prediction.flags else UNFLAGGED,)
    group = {LENGTH: length_group, TURN: turn_group, DISTANCE: distance_group}[by]
    found = group(prediction)
    return () if found is None else (found,)


def _rank(prediction: Prediction, by: str) -> tuple[bool, int]:
    """Where the group of an answer stands among the others of its grouping."""
    if by == LENGTH:
        return prediction.language == "zh", prediction.length or 0
    return False, (prediction.position if by == TURN else _distance_bin(prediction)) or 0


def subsets_of(predictions: Sequence[Prediction], by: Sequence[str] = ()) -> list[tuple[str, str]]:
    """``(grouping, subset)``: every tag that occurs, flagged recordings and the others where some are flagged, then every
    group of the groupings asked for, from low to high."""
    tags = sorted({tag for p in predictions for tag in p.tags})
    found = [(TAG, tag) for tag in tags]
    flagged = {bool(p.flags) for p in predictions}
    if True in flagged:
        found += [(FLAG, FLAGGED), *([(FLAG, UNFLAGGED)] if False in flagged else [])]
    for grouping in by:
        ranks = {name: _rank(p, grouping) for p in predictions for name in subset_names(p, grouping)}
        found += [(grouping, name) for name in sorted(ranks, key=lambda name: ranks[name])]
    return found
