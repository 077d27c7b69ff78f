"""Rendering faces from action units, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mer.errors import UserError


@dataclass(frozen=True)
class Expression:
    """Action units at the apex, as fractions of their full range (0 is at rest).

    ``brow_raise`` AU1+2, ``brow_inner`` AU1 alone (inner ends up), ``brow_lower`` AU4, ``eye_open`` AU5 (above 0) or AU7
    (below), ``mouth_curve`` AU12 (above 0) or AU15 (below), ``mouth_width`` AU20, ``jaw_drop`` AU26, ``head_pitch`` down
    when below 0, ``head_shake`` amplitude.
    """

    brow_raise: float = 0.0
    brow_inner: float = 0.0
    brow_lower: float = 0.0
    eye_open: float = 0.0
    mouth_curve: float = 0.0
    mouth_width: float = 0.0
    jaw_drop: float = 0.0
    head_pitch: float = 0.0
    head_shake: float = 0.0


EXPRESSIONS: dict[str, Expression] = {
    "neutral": Expression(),
    "joy": Expression(brow_raise=0.15, eye_open=-0.35, mouth_curve=1.0, mouth_width=0.5, jaw_drop=0.15, head_pitch=0.2),
    "sadness": Expression(brow_inner=0.9, eye_open=-0.3, mouth_curve=-0.9, mouth_width=-0.2, head_pitch=-0.8),
    "anger": Expression(brow_lower=1.0, eye_open=0.1, mouth_curve=-0.45, mouth_width=-0.35, head_shake=0.7),
    "fear": Expression(brow_raise=0.6, brow_inner=0.7, eye_open=0.8, mouth_curve=-0.3, mouth_width=0.7, head_shake=0.35),
    "surprise": Expression(brow_raise=1.0, eye_open=0.9, mouth_width=-0.4, jaw_drop=0.9, head_pitch=0.35),
}


@dataclass(frozen=True)
class Look:
    """A speaker's face: skin and hair colour (RGB 0 to 255), width and height factors, resting brow and mouth."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    width: float
    height: float
    rest_brow: float
    rest_mouth: float
    background: int


def draw_look(generator: np.random.Generator) -> Look:
    """Draw a speaker's look at random."""
    tone = generator.uniform(0.55, 1.0)
    skin = (int(235 * tone), int(195 * tone), int(165 * tone))
    shade = int(generator.uniform(15, 110))
    return Look(
        skin,
        (shade, int(shade * 0.8), int(shade * 0.6)),
        float(generator.uniform(0.9, 1.1)),
        float(generator.uniform(0.92, 1.08)),
        float(generator.normal(0, 0.12)),
        float(generator.normal(0, 0.1)),
        int(generator.uniform(60, 190)),
    )


def envelope(samples: np.ndarray, rate: int, fps: float, frames: int) -> np.ndarray:
    """Speech energy at each frame, 0 to 1: ``(frames,)``."""
    window = int(rate / fps)
    padded = np.pad(samples, (0, max(0, frames * window - len(samples))))[: frames * window]
    level = np.sqrt((padded.reshape(frames, window) ** 2).mean(axis=1))
    return level / (level.max() + 1e-6)


def render(
    look: Look, emotion: str, intensity: float, curve: float, speech: np.ndarray, fps: float, size: int, seed: list[int]
) -> np.ndarray:
    """Frames of a talking face: ``(F, size, size, 3)`` uint8 RGB.

    Args:
        intensity: scales the expression. curve: added to the mouth's curve (which distinguishes pleasant from unpleasant
            surprise).
        speech: ``(F,)`` energy that opens the mouth.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("drawing faces needs OpenCV: pip install 'llm-mer[media]'") from None
    generator = np.random.default_rng(seed)
    apex = EXPRESSIONS[emotion]
    scale = intensity * generator.uniform(0.75, 1.2)
    noise = generator.normal(0, 0.12, 7)
    frames = len(speech)
    seconds = np.arange(frames) / fps
    length = max(frames / fps, 0.1)
    onset = np.clip(seconds / (0.25 * length), 0, 1) * np.clip((length - seconds) / (0.2 * length) + 0.35, 0, 1)
    blink_at = generator.uniform(0.2, max(length, 0.4))
    phase, wobble = generator.uniform(0, 2 * np.pi), generator.normal(0, 0.4, 2)
    pixels = np.empty((frames, size, size, 3), dtype=np.uint8)
    grain = generator.normal(0, 4, (size, size, 1))
    for i in range(frames):
        strength = scale * onset[i]
        shake = apex.head_shake * strength * np.sin(2 * np.pi * 2.2 * seconds[i] + phase)
        nod = 0.25 * speech[i] + wobble[1] * 0.4 * np.sin(1.7 * seconds[i])
        pose = {
            "brow_raise": apex.brow_raise * strength + look.rest_brow + 0.1 * speech[i] + noise[0],
            "brow_inner": apex.brow_inner * strength + noise[1] * 0.6,
            "brow_lower": apex.brow_lower * strength + noise[2] * 0.6,
            "eye_open": apex.eye_open * strength + noise[3] * 0.6,
            "mouth_curve": apex.mouth_curve * strength + curve * onset[i] + look.rest_mouth + noise[4],
            "mouth_width": apex.mouth_width * strength + noise[5] * 0.6,
            "jaw": max(apex.jaw_drop * strength, 0) + 0.55 * speech[i],
            "dx": shake + 0.3 * wobble[0] * np.sin(1.3 * seconds[i] + phase),
            "dy": -apex.head_pitch * strength + nod,
            "blink": float(abs(seconds[i] - blink_at) < 0.08),
        }
        pixels[i] = _draw(cv2, look, pose, size, grain)
    return pixels


def _draw(cv2: Any, look: Look, pose: dict[str, float], size: int, grain: np.ndarray) -> np.ndarray:
    shift, unit = 4, 16 * size / 96
    image = np.full((size, size, 3), look.background, dtype=np.uint8)

    def point(x: float, y: float) -> tuple[int, int]:
        return round(x * unit), round(y * unit)

    def ellipse(
        x: float, y: float, rx: float, ry: float, colour: tuple[int, ...], thick: int = -1, arc: Any = (0, 360)
    ) -> None:
        axes = (max(round(rx * unit), 1), max(round(ry * unit), 1))
        cv2.ellipse(image, point(x, y), axes, 0, arc[0], arc[1], colour, thick, cv2.LINE_AA, shift)

    cx, cy = 48 + 3 * pose["dx"], 50 + 3 * pose["dy"]
    w, h = 27 * look.width, 34 * look.height
    ellipse(cx, cy - 8, w + 4, h, look.hair)
    ellipse(cx, cy, w, h, look.skin)
    dark = (40, 30, 30)
    for side in (-1, 1):
        ex, ey = cx + side * 11 * look.width, cy - 7
        opening = 0.4 if pose["blink"] else max(4.0 * (1 + 0.75 * pose["eye_open"]), 0.8)
        ellipse(ex, ey, 5.5, opening, (245, 245, 245))
        if not pose["blink"]:
            ellipse(ex + pose["dx"], ey, 2.4, min(2.4, opening), dark)
        outer_y = ey - 9 - 5 * pose["brow_raise"] + 2.5 * pose["brow_lower"] + 1.5 * pose["brow_inner"]
        inner_y = ey - 9 - 5 * pose["brow_raise"] + 6 * pose["brow_lower"] - 5 * pose["brow_inner"]
        inner_x = ex - side * (5.5 + 1.2 * pose["brow_lower"])
        cv2.line(image, point(ex + side * 6.5, outer_y), point(inner_x, inner_y), look.hair, 2, cv2.LINE_AA, shift)
    ellipse(cx, cy + 5, 2.2, 3.2, tuple(int(c * 0.85) for c in look.skin))
    half, my = 9.5 * (1 + 0.3 * pose["mouth_width"]), cy + 18
    gap = 7.5 * np.clip(pose["jaw"], 0, 1.3)
    bend = 5.5 * pose["mouth_curve"]
    xs = np.linspace(-1, 1, 15)
    top = my + bend * (0.5 - xs**2) - 0.35 * gap * (1 - xs**2)
    low = my + bend * (0.5 - xs**2) + 0.9 * gap * (1 - xs**2) + 0.8
    outline = [point(cx + half * x, y) for x, y in zip(xs, top, strict=True)]
    outline += [point(cx + half * x, y) for x, y in zip(xs[::-1], low[::-1], strict=True)]
    cv2.fillPoly(image, [np.array(outline, dtype=np.int32)], (90, 25, 35), cv2.LINE_AA, shift)
    cv2.polylines(image, [np.array(outline, dtype=np.int32)], True, (150, 60, 70), 1, cv2.LINE_AA, shift)
    return np.clip(image + grain, 0, 255).astype(np.uint8)
