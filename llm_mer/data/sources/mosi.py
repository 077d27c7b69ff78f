"""CMU-MOSI as a folder: ``features.npz`` (one vector per utterance and modality) and ``index.csv``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError

COLUMNS: tuple[str, ...] = ("id", "video", "segment", "split", "score", "english", "chinese")
TEXT_COLUMN: dict[str, str] = {"en": "english", "zh": "chinese"}


def read_mosi(path: Path, languages: Sequence[str] = ("en", "zh")) -> list[Utterance]:
    """Each sentence once per language, ids suffixed ``-en`` and ``-zh``.

    ``text (1, 100)``, ``audio (1, 73)``, ``vision (1, 100)`` are stored as sequences of one step. The video is the
    dialogue, the segment's place in it the turn. Labels: ``sentiment`` in [-3, 3] and ``polarity``, positive for a score
    of 0 or more (Has0, the convention of the 752-sentence test set whose majority is .621).

    Raises:
        UserError: a missing file, column or row, or features that do not fit the index.
    """
    path = Path(path)
    index, archive = path / "index.csv", path / "features.npz"
    for file in (index, archive):
        if not file.is_file():
            raise UserError(f"{file}: no such file; a MOSI folder holds index.csv and features.npz")
    with np.load(archive, allow_pickle=False) as stored:
        features = {name: stored[name].astype(np.float32) for name in ("text", "audio", "vision")}
    with index.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    missing = sorted(set(COLUMNS) - set(rows[0] if rows else ()))
    if missing:
        raise UserError(f"{index}: missing columns {missing}")
    for name, values in features.items():
        if len(values) != len(rows):
            raise UserError(f"{archive}: {name} has {len(values)} rows, {index.name} has {len(rows)}")
    found = []
    for number, row in enumerate(rows):
        score = float(row["score"])
        for language in languages:
            found.append(
                Utterance(
                    id=f"{row['id']}-{language}",
                    split=row["split"],
                    language=language,
                    text=row[TEXT_COLUMN[language]],
                    text_features=features["text"][number : number + 1],
                    audio_features=features["audio"][number : number + 1],
                    vision_features=features["vision"][number : number + 1],
                    labels={"sentiment": score, "polarity": "positive" if score >= 0 else "negative"},
                    dialogue_id=row["video"],
                    turn=int(row["segment"]),
                    speaker=row["video"],
                )
            )
    return found
