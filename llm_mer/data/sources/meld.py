"""MELD: dialogues of a television series, with seven emotions.

Layout: a folder with ``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv``, or one of these files. Columns
Utterance, Speaker, Emotion, Sentiment, Dialogue_ID and Utterance_ID; others are not read. Clips are
``dia{Dialogue_ID}_utt{Utterance_ID}.mp4`` in one folder per split, under the published names or any of train, dev, valid,
test.

Conventions: Dialogue_ID counts from 0 in every file, so ids and dialogues begin with the split. Utterance_ID is the turn.
Labels: ``emotion`` under MELD's names, and ``polarity`` where the sentiment is not neutral. Published copies write some
apostrophes as bytes of windows-1252, or as UTF-8 that was once read as windows-1252 (``â€™``); both are repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.common import label_name, polarity, require_file
from llm_mer.data.sources.csv_rows import csv_rows
from llm_mer.data.sources.numbers import whole_number
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

COLUMNS: tuple[str, ...] = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
FILES: dict[str, str] = {"train": "train_sent_emo.csv", "valid": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
MEDIA_FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train_splits", "train"),
    "valid": ("dev_splits_complete", "dev", "valid"),
    "test": ("output_repeated_splits_test", "test"),
}


def _windows(byte: int) -> str:
    return bytes([byte]).decode("cp1252", errors="replace").replace("\ufffd", chr(byte))


# A byte that is not valid UTF-8 is read as a lone surrogate, one decoded as Latin-1 as a C1 control.
_BYTES = {0xDC00 + byte: _windows(byte) for byte in range(0x80, 0x100)} | {
    byte: _windows(byte) for byte in range(0x80, 0xA0)
}
# The three bytes of a quotation mark, dash or ellipsis in UTF-8, read as windows-1252.
_TRIPLES = {"â€" + _windows(byte): bytes([0xE2, 0x80, byte]).decode() for byte in range(0x80, 0xC0)}
_TRIPLE = re.compile("â€.")


def repair_text(text: str) -> str:
    """Restore windows-1252 characters. ``text`` is UTF-8 decoded with ``surrogateescape``."""
    return _TRIPLE.sub(lambda found: _TRIPLES.get(found.group(), found.group()), text.translate(_BYTES))


def read_meld(path: Path | str, media: Path | str | None = None) -> Iterator[Utterance]:
    """Read MELD's utterances, one row at a time.

    Args:
        media: the folder that holds the splits' clip folders; the CSV files' own folder if None. A clip that exists is used
            as audio and vision; the two that MELD itself lacks have neither.

    Raises:
        UserError: a missing file or column, an unknown label, an invalid number, or ``media`` without a folder of clips.
    """
    path = Path(path)
    if path.is_file():
        splits = [split for split, name in FILES.items() if path.name == name]
        if not splits:
            raise UserError(f"{path}: not one of {', '.join(FILES.values())}")
        files = {splits[0]: path}
    else:
        files = {split: path / name for split, name in FILES.items()}
        for file in files.values():
            require_file(file, f"a MELD folder holds {', '.join(FILES.values())}")
    root = Path(media) if media is not None else next(iter(files.values())).parent
    clips = {split: _clip_folder(root, split) for split in files}
    if media is not None and not any(clips.values()):
        wanted = ", ".join(name for split in files for name in MEDIA_FOLDERS[split])
        raise UserError(f"{root}: no folder of clips here; media must contain {wanted}")
    for split, file in files.items():
        yield from _read_file(file, split, clips[split])


def _clip_folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in MEDIA_FOLDERS[split] if (root / name).is_dir()), None)


def _read_file(file: Path, split: str, clips: Path | None) -> Iterator[Utterance]:
    task = get_task("meld")
    for where, row in csv_rows(file, COLUMNS, errors="surrogateescape"):
        dialogue = whole_number(row["Dialogue_ID"], "Dialogue_ID", where)
        turn = whole_number(row["Utterance_ID"], "Utterance_ID", where)
        clip = clips / f"dia{dialogue}_utt{turn}.mp4" if clips is not None else None
        media = str(clip) if clip is not None and clip.is_file() else None
        labels: dict[str, str | float] = {"emotion": label_name(task, row["Emotion"], "Emotion", where)}
        labels.update(polarity(row["Sentiment"].strip(), "Sentiment", where))
        yield Utterance(
            id=f"{split}-dia{dialogue}-utt{turn}",
            split=split,
            language="en",
            text=repair_text(row["Utterance"]).strip(),
            audio=media,
            vision=media,
            labels=labels,
            dialogue_id=f"{split}-dia{dialogue}",
            turn=turn,
            speaker=repair_text(row["Speaker"]).strip(),
        )
