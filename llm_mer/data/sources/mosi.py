"""CMU-MOSI as a folder: ``features.npz`` (one vector per utterance and modality) and ``index.csv``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError

COLUMNS: tuple[str, ...] = ("id", "video", "segment", "split", "score", "english", "chinese")
DECLARE_LAB_TEST: frozenset[str] = frozenset(
    """
    Sqr0AcuoNnk tStelxIAHjw BXuRRbG0Ugk 2WGyTLYerpo iiK8YX8oH1E cM3Yna7AavY I5y0__X72p0 tmZoasNr4rU GWuJjcEuzt8
    Dg_0XKD0Mf4 Njd1F0vZSm4 9J25DZhivz8 OQvJTdtJ2H4 0h-zjBukYpk Nzq88NnDkEk 9c67fiY0wGQ Clx4VXItLTE vyB00TXsimI
    Iu2PFX3z_1s Ci-AH39fi3Y 8d-gEyoeBzc ZUXBRvtny7o 1iG0909rllw cW1FSBF59ik 03bSnISJMiM vvZ4IcEtiZc Af8D0E4ZXaw
    G-xst2euQUc Jkswaaud0hk Vj1wYRQjB-o BI97DNYfe5I
    """.split()
)
"""Videos of declare-lab's 752 test sentences. ``benchmarks/mosi_split.py`` shows how they were found and what they mean."""
SPLITS: tuple[str, ...] = ("declare_lab", "official")
TEXT_COLUMN: dict[str, str] = {"en": "english", "zh": "chinese"}


def read_mosi(path: Path, languages: Sequence[str] = ("en", "zh"), split: str = "declare_lab") -> list[Utterance]:
    """Each sentence once per language, ids suffixed ``-en`` and ``-zh``.

    The features come from networks that declare-lab trained on the sentiment of its own 1447 training sentences. Under the
    ``official`` split of ``index.csv`` most test sentences are among those, so their features hold their labels and any
    classifier reaches .95 accuracy. ``declare_lab`` (default) is the split the features were made with: 62 videos to
    train, 31 to test, none to validate, since every training video's features are already fitted.

    ``text (1, 100)``, ``audio (1, 73)``, ``vision (1, 100)`` are stored as sequences of one step. The video is the
    dialogue, the segment's place in it the turn. Labels: ``sentiment`` in [-3, 3] and ``polarity``, positive for a score
    of 0 or more (Has0, the convention of the 752-sentence test set whose majority is .621).

    Raises:
        UserError: a missing file, column or row, or features that do not fit the index.
    """
    if split not in SPLITS:
        raise UserError(f"MOSI split {split!r}: choose one of {', '.join(SPLITS)}")
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
                    split=_split(row, split),
                    language=language,
                    text=row[
                        TEXT_COLUMN[language]
                    ].lower(),  # the English column is in capitals, which no tokenizer has seen much of
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


def _split(row: dict[str, str], kind: str) -> str:
    if kind == "official":
        return row["split"]
    return "test" if row["video"] in DECLARE_LAB_TEST else "train"
