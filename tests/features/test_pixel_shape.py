"""Pictures of pixels that are not square are read as they are displayed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import video_stream, write_pictures

from llm_mer.features.media import MediaError, read_frames

SIZE = 64


def disc(ratio: Fraction) -> np.ndarray:
    """Five stored pictures of what is a disc of radius 20 in a square where a pixel is ``ratio`` times as wide as high."""
    across, down = max(float(ratio), 1.0), max(1 / float(ratio), 1.0)
    height, width = round(SIZE / down), round(SIZE / across)
    y, x = np.mgrid[:height, :width]
    inside = ((x + 0.5) * across - SIZE / 2) ** 2 + ((y + 0.5) * down - SIZE / 2) ** 2 < 20**2
    return np.repeat(np.where(inside, 220, 40).astype(np.uint8)[None, :, :, None], 5, axis=0).repeat(3, axis=3)


def write(path: Path, pixels: np.ndarray, ratio: Fraction) -> Path:
    with av.open(str(path), "w") as container:
        stream = video_stream(container, pixels)
        stream.codec_context.sample_aspect_ratio = ratio
        write_pictures(container, stream, pixels, [i / 25 for i in range(len(pixels))])
    return path


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(2), Fraction(1, 2), Fraction(16, 11), Fraction(10, 11)])
def test_a_disc_is_round_whatever_the_shape_of_the_pixels(ratio: Fraction, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", disc(ratio)[:, : SIZE // 2 * 2, :], ratio)
    picture = read_frames(path, 25).pixels[0, :, :, 0].astype(int) > 130
    across, down = int(picture.any(axis=0).sum()), int(picture.any(axis=1).sum())
    assert abs(across - 40) <= 3
    assert abs(down - 40) <= 3


def test_a_large_picture_of_wide_pixels_keeps_its_shape_within_the_bound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", disc(Fraction(2)), Fraction(2))
    assert read_frames(path, 25, max_side=32).pixels.shape[1:] == (32, 32, 3)


def test_pixels_of_no_sensible_shape_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", disc(Fraction(1)), Fraction(9))
    with pytest.raises(MediaError, match="pixels 9 times as wide as high; at most 8 are supported") as caught:
        read_frames(path, 25)
    assert caught.value.reason == "odd_pictures"
