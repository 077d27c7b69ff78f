"""What is wrong with a recording though it can be read: silence, low level, clipping, black, blank or frozen pictures.

A flag refuses nothing. It stands with the utterance in the store and in the answer, so that a score or an answer can be read
with it. It is found in what is decoded: the mean of all channels at 16 kHz, and the pictures that are sampled for features.
"""

from __future__ import annotations

import numpy as np

from llm_mer.data.schema import SAMPLE_RATE, Frames

BLOCK_SECONDS = 0.1
SILENCE_LEVEL = -60.0
"""dBFS, of the root mean square of the loudest block: full scale is 1, so a sine of full scale has -3.01."""
LOW_LEVEL = -50.0
"""dBFS, as above. Speech is recorded at about -35 to -10."""
CLIPPED_SAMPLE = 0.98
"""Absolute value; 1 is full scale."""
CLIPPED_SHARE = 0.001
BLACK_LUMA = 25.5
"""Of 255: a tenth of full brightness."""
BLACK_PIXELS = 0.98
"""Share of a picture's pixels that are black where the picture is."""
BLANK_DEVIATION = 2.0
"""Standard deviation of luma over a picture, of 255."""
FROZEN_DIFFERENCE = 0.255
"""Mean absolute difference of luma between two pictures that follow one another, of 255: a thousandth of full brightness."""
FROZEN_SECONDS = 1.0
"""Shortest standstill that counts; a slide show of one picture a half second has none."""
PICTURE_SHARE = 0.5
"""Share of a clip's pictures that have to be black, blank or frozen."""


def find_sound_flags(samples: np.ndarray) -> list[str]:
    """Flags of ``(n,)`` samples at 16 kHz in [-1, 1].

    ``silence``: the loudest 100 ms have less than -60 dBFS (:data:`SILENCE_LEVEL`). ``low_level``: less than -50 dBFS.
    ``clipping``: more than a thousandth of the samples reach 0.98 of full scale.
    """
    found = []
    level = loudest_level(samples)
    if level < SILENCE_LEVEL:
        found.append("silence")
    elif level < LOW_LEVEL:
        found.append("low_level")
    if np.mean(np.abs(samples) >= CLIPPED_SAMPLE) > CLIPPED_SHARE:
        found.append("clipping")
    return found


def loudest_level(samples: np.ndarray) -> float:
    """``max_b 20 log10 rms_b`` over blocks of 100 ms, the last of which may be shorter; -inf for zeros."""
    size = round(BLOCK_SECONDS * SAMPLE_RATE)
    starts = np.arange(0, len(samples), size)
    power = np.add.reduceat(np.square(samples, dtype=np.float64), starts) / np.diff(np.append(starts, len(samples)))
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(power.max()))


def find_picture_flags(frames: Frames) -> list[str]:
    """Flags of sampled pictures.

    ``black_pictures``: at least half of them are black, which is when 98 % of the pixels have a luma below a tenth of full
    brightness. ``blank_pictures``: at least half are of one colour, luma deviating by less than 2 of 255, and they are not
    black. ``frozen_pictures``: for at least half of the clip, standstills of a second or more (of the whole clip where it is
    shorter), in which pictures differ from the one before by less than a thousandth of full brightness on average. A clip
    that is black or blank is not said to be frozen too.
    """
    black = blank = 0
    still: list[bool] = []
    previous: np.ndarray | None = None
    for picture in frames.pixels:  # one at a time, since all of a long clip in floats would not fit
        luma = _luma(picture)
        black += bool(np.mean(luma < BLACK_LUMA) >= BLACK_PIXELS)
        blank += bool(luma.std() < BLANK_DEVIATION)
        if previous is not None:
            still.append(float(np.abs(luma - previous).mean()) < FROZEN_DIFFERENCE)
        previous = luma
    least = PICTURE_SHARE * len(frames.pixels)
    if black >= least:
        return ["black_pictures"]
    if blank >= least:
        return ["blank_pictures"]
    return ["frozen_pictures"] if _frozen_share(still, frames.fps) >= PICTURE_SHARE else []


def _luma(picture: np.ndarray) -> np.ndarray:
    """``(h, w, 3)`` of 0 to 255 to the luma ``(h, w)`` of ITU-R BT.601."""
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _frozen_share(still: list[bool], fps: float) -> float:
    """Share of the steps from picture to picture that lie in standstills; 0 for a single picture."""
    if not still:
        return 0.0
    shortest = min(FROZEN_SECONDS * fps, len(still))
    frozen = run = 0
    for stands in [*still, False]:
        if stands:
            run += 1
            continue
        frozen += run if run >= shortest else 0
        run = 0
    return frozen / len(still)
