"""CMU-MOSI as a folder of ``features.npz`` (one vector per utterance and modality) and ``index.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llm_mer.data.schema import SPLITS as SPLIT_NAMES
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.common import npz_rows, npz_shape, require_file
from llm_mer.data.sources.csv_rows import csv_rows
from llm_mer.data.sources.numbers import real_number, whole_number
from llm_mer.errors import UserError

MODALITIES: tuple[str, ...] = ("text", "audio", "vision")
COLUMNS: tuple[str, ...] = ("id", "video", "segment", "split", "score", "english", "chinese")
DECLARE_LAB_TEST: frozenset[str] = frozenset(
    """
    Sqr0AcuoNnk tStelxIAHjw BXuRRbG0Ugk 2WGyTLYerpo iiK8YX8oH1E cM3Yna7AavY I5y0__X72p0 tmZoasNr4rU GWuJjcEuzt8
    Dg_0XKD0Mf4 Njd1F0vZSm4 9J25DZhivz8 OQvJTdtJ2H4 0h-zjBukYpk Nzq88NnDkEk 9c67fiY0wGQ Clx4VXItLTE vyB00TXsimI
    Iu2PFX3z_1s Ci-AH39fi3Y 8d-gEyoeBzc ZUXBRvtny7o 1iG0909rllw cW1FSBF59ik 03bSnISJMiM vvZ4IcEtiZc Af8D0E4ZXaw
    G-xst2euQUc Jkswaaud0hk Vj1wYRQjB-o BI97DNYfe5I
    """.split()
)
"""Videos of declare-lab's 752 test sentences; ``benchmarks/mosi_split.py`` shows how they were identified."""
SPLITS: tuple[str, ...] = ("declare_lab", "official")
TEXT_COLUMN: dict[str, str] = {"en": "english", "zh": "chinese"}


def read_mosi(path: Path, languages: Sequence[str] = ("en", "zh"), split: str = "declare_lab") -> Iterator[Utterance]:
    """Read each sentence once per language, ids suffixed ``-en`` and ``-zh``, one row of both files in memory at a time.

    The features come from networks that declare-lab trained on the sentiment of its own 1447 training sentences. Under the
    ``official`` split of ``index.csv`` most test sentences are among those, so their features leak the labels and any
    classifier reaches .95 accuracy. ``declare_lab`` (default) is the split the features were made with: 62 videos for
    training, 31 for testing, none for validation, since every training video's features are already fitted.

    ``text (1, 100)``, ``audio (1, 73)``, ``vision (1, 100)`` are stored as sequences of one step. The video is the
    dialogue, the segment's position in it the turn. Labels: ``sentiment`` in [-3, 3] and ``polarity``, positive for a score
    of 0 or more (Has0, the convention of the 752-sentence test set whose majority is .621).

    Raises:
        UserError: a missing file, column or row, a score out of range, or features that do not match the index.
    """
    if split not in SPLITS:
        raise UserError(f"unknown MOSI split {split!r}; choose from {', '.join(SPLITS)}")
    path = Path(path)
    index, archive = path / "index.csv", path / "features.npz"
    for file in (index, archive):
        require_file(file, "a MOSI folder holds index.csv and features.npz")
    count = sum(1 for _ in csv_rows(index, COLUMNS))
    for name in MODALITIES:
        shape = npz_shape(archive, name)
        if len(shape) != 2 or shape[0] != count:
            raise UserError(
                f"{archive}: {name} has shape {shape}; it must be ({count}, size): {index.name} has {count} rows"
            )
    features = zip(*(npz_rows(archive, name) for name in MODALITIES), strict=True)
    for (where, row), vectors in zip(csv_rows(index, COLUMNS), features, strict=True):
        score = real_number(row["score"], "score", where, -3.0, 3.0)
        text, audio, vision = (vector[None, :].astype(np.float32) for vector in vectors)
        for language in languages:
            yield Utterance(
                id=f"{row['id']}-{language}",
                split=_split(row, split, where),
                language=language,
                # The English column is upper-case, which tokenizers have rarely seen.
                text=row[TEXT_COLUMN[language]].lower(),
                text_features=text,
                audio_features=audio,
                vision_features=vision,
                labels={"sentiment": score, "polarity": "positive" if score >= 0 else "negative"},
                dialogue_id=row["video"],
                turn=whole_number(row["segment"], "segment", where),
                speaker=row["video"],
            )


def _split(row: dict[str, str], kind: str, where: str) -> str:
    if kind == "declare_lab":
        return "test" if row["video"] in DECLARE_LAB_TEST else "train"
    if row["split"] not in SPLIT_NAMES:
        raise UserError(f"{where}: field split is {row['split']!r}; it must be one of {', '.join(SPLIT_NAMES)}")
    return row["split"]
