"""What becomes of clips that are longer than a model reads: the options of training, inference and evaluation.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from llm_mer.errors import UserError

REFUSE, CUT = "refuse", "cut"
LONG_CLIPS: tuple[str, ...] = (REFUSE, CUT)
"""A longer clip is refused, or only its beginning is read."""
MAX_STEPS: dict[str, int] = {"audio": 400, "vision": 200}
"""Steps that a training reads unless it is told otherwise."""
OPTION_DEFAULTS: dict[str, Any] = {"windows": None, "window_overlap": 0.0, "long_clips": REFUSE}


def long_clips_option() -> str:
    """The field ``long_clips`` of a command's options."""
    text = "a clip longer than the checkpoint reads: refuse it, or cut it and answer from its beginning alone"
    found: str = field(default=REFUSE, metadata={"help": text, "choices": list(LONG_CLIPS)})
    return found


def long_clips_as_trained_option() -> str | None:
    """The same field of a command about whole data sets, by default as the checkpoint was trained."""
    text = "a clip longer than the checkpoint reads: refuse it, or cut it and answer from its beginning alone"
    found: str | None = field(
        default=None, metadata={"help": f"{text} (default: as it was trained)", "choices": list(LONG_CLIPS)}
    )
    return found


def windows_option() -> float | None:
    """The field ``windows`` of a command's options."""
    text = "seconds of the windows in which a longer clip is asked about; their mean is its answer"
    found: float | None = field(default=None, metadata={"help": text})
    return found


def window_overlap_option() -> float:
    """The field ``window_overlap`` of a command's options."""
    found: float = field(default=0.0, metadata={"help": "seconds that neighbouring windows share at least"})
    return found


def check_long_clips(long_clips: str, windows: float | None, window_overlap: float = 0.0) -> None:
    """Raises :class:`UserError` for an unknown way with long clips, two ways at once, or an overlap of no windows."""
    if long_clips not in LONG_CLIPS:
        raise UserError(f"long_clips is {long_clips!r}; choose from {', '.join(LONG_CLIPS)}")
    if windows is not None and long_clips != REFUSE:
        raise UserError(f"--windows {windows:g} with --long_clips {long_clips}: in windows nothing is cut; leave one out")
    if windows is None and window_overlap:
        raise UserError(f"--window_overlap {window_overlap:g} without --windows; say how long the windows are")
