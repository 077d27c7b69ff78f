"""Tables of a user's own clips, with labels and a score that sound and pictures tell."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from media_files import tone, write_mp4

MOODS = ("calm", "tense", "bored")
SENTENCES = {
    "en": ("the train leaves at nine", "we meet in the kitchen", "the book is on the table", "this is the last page"),
    "zh": ("火车九点开", "桌子在厨房里", "我们星期一见面", "这本书有很多页"),
}


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str = ",") -> Path:
    """A table as a spreadsheet program writes it."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([columns, *rows])
    return path


def make_clips(folder: Path, count: int, seconds: float = 0.5) -> list[list[Any]]:
    """``[file, text, speaker, mood, pleasure, notes]`` of each clip; its pitch and brightness tell mood and pleasure.

    Moods, four speakers and two languages are crossed in 24 clips; the notes are all different.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows: list[list[Any]] = []
    for number in range(count):
        mood = number % len(MOODS)
        pleasure = int(np.clip(random.normal((80, 20, 50)[mood], 8), 0, 100))
        language = "zh" if number // 12 % 2 else "en"
        file = f"clips/take{number:02d}.mp4"
        if not (folder / file).is_file():
            pixels = np.full((round(seconds * 25), 64, 64, 3), 40 + 80 * mood, dtype=np.uint8)
            pixels += random.integers(0, 20, pixels.shape, dtype=np.uint8)
            samples = tone((150, 300, 600)[mood], seconds, 16_000) + random.normal(0, 0.02, round(seconds * 16_000))
            write_mp4(folder / file, pixels, samples=samples)
        text = SENTENCES[language][number % 3]
        rows.append(
            [file, text, f"S{number // 3 % 4}", MOODS[mood], pleasure, f"take {number} of the day, {number * 7} s in"]
        )
    return rows


COLUMNS = ("file", "text", "speaker", "mood", "pleasure", "notes")
