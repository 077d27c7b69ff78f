"""CPED: Chinese television dialogues with thirteen emotions.

Layout: a folder with any of ``train_split.csv``, ``valid_split.csv`` and ``test_split.csv``, or one of these files. Columns
Dialogue_ID (``27_000``), Utterance_ID (``27_000_001``), Speaker, Sentiment, Emotion and Utterance; scene, dialogue act, age
and personality of the speaker are not read.

Conventions: ids are the published ones, unique over the splits; the last number of Utterance_ID is the turn. Labels:
``emotion`` under the names of the task ``cped``, which are MELD's where both have the emotion (happy is joy, astonished is
surprise), and ``polarity`` where the sentiment is not neutral.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.common import label_name, polarity
from llm_mer.data.sources.csv_rows import csv_rows
from llm_mer.data.sources.numbers import whole_number
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

COLUMNS: tuple[str, ...] = ("Dialogue_ID", "Utterance_ID", "Speaker", "Sentiment", "Emotion", "Utterance")
FILES: dict[str, str] = {"train": "train_split.csv", "valid": "valid_split.csv", "test": "test_split.csv"}


def read_cped(path: Path | str) -> Iterator[Utterance]:
    """Read CPED's utterances of the splits that exist, one row at a time.

    Raises:
        UserError: no file of any split, a missing column, an unknown label, an Utterance_ID of another dialogue.
    """
    path = Path(path)
    files = {split: path / name if path.is_dir() else path for split, name in FILES.items()}
    files = {split: file for split, file in files.items() if file.name == FILES[split] and file.is_file()}
    if not files:
        raise UserError(f"{path}: no such file; a CPED folder holds {', '.join(FILES.values())}")
    for split, file in files.items():
        yield from _read_file(file, split)


def _read_file(file: Path, split: str) -> Iterator[Utterance]:
    task = get_task("cped")
    for where, row in csv_rows(file, COLUMNS):
        dialogue, _, turn = row["Utterance_ID"].rpartition("_")
        if dialogue != row["Dialogue_ID"]:
            raise UserError(
                f"{where}: Utterance_ID {row['Utterance_ID']!r} does not belong to Dialogue_ID {row['Dialogue_ID']!r}"
            )
        labels: dict[str, str | float] = {"emotion": label_name(task, row["Emotion"], "Emotion", where)}
        labels.update(polarity(row["Sentiment"].strip(), "Sentiment", where))
        yield Utterance(
            id=row["Utterance_ID"],
            split=split,
            language="zh",
            text=row["Utterance"].strip(),
            labels=labels,
            dialogue_id=dialogue,
            turn=whole_number(turn, "Utterance_ID", where),
            speaker=row["Speaker"].strip(),
        )
