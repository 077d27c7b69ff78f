"""CMU-MOSI as the CSV files of declare-lab/multimodal-deep-learning (``bc-LSTM/data``).

Layout, all files without a header::

    transcripts.csv                  "video_segment", sentence, number of the video, 0 or 1
    text_train.csv, text_test.csv    first column: 0-based row of transcripts.csv to which a row of the split belongs
    {text,audio,video}_{train,test}0.csv   a vector of 100, 73, 100 statistics, last column 0 or 1

The feature files are beside ``transcripts.csv`` or, for each modality, in a folder of its name (``text/text_train0.csv``).
The files of a split have the same rows in the same order, 1447 and 752; these are not the transcripts' rows, hence the
index.

Conventions: a vector is a sequence of one step. The video is the dialogue and the segment's number the turn. There is
no score, only ``polarity``: 1 is positive, as is every score of 0 or more. There is no validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.common import require_file
from llm_mer.data.sources.csv_rows import read_rows
from llm_mer.data.sources.numbers import parse_number, whole_number
from llm_mer.errors import UserError

MODALITIES: tuple[str, ...] = ("text", "audio", "video")
POLARITY: dict[float, str] = {0.0: "negative", 1.0: "positive"}


def read_mosi_csv(path: Path | str) -> Iterator[Utterance]:
    """Read MOSI's utterances, training before test, one row of each file at a time.

    Raises:
        UserError: a missing file or column, files of a split with different numbers of rows, labels that disagree or are
            neither 0 nor 1.
    """
    path = Path(path)
    transcripts = path / "transcripts.csv"
    files = {
        split: {"index": path / f"text_{split}.csv", **{name: _feature_file(path, name, split) for name in MODALITIES}}
        for split in ("train", "test")
    }
    for file in (transcripts, *(file for part in files.values() for file in part.values())):
        require_file(
            file, "the folder holds transcripts.csv, text_{train,test}.csv and {text,audio,video}_{train,test}0.csv"
        )
    sentences = list(_transcripts(transcripts))
    for split, part in files.items():
        yield from _read_split(split, part, sentences, transcripts)


def _feature_file(path: Path, name: str, split: str) -> Path:
    nested = path / name / f"{name}_{split}0.csv"
    return nested if nested.is_file() else path / nested.name


def _rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for where, row in read_rows(stream, file):
                if isinstance(row, UserError):
                    raise row
                yield where, row
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not CSV in UTF-8: {error}") from None


def _transcripts(file: Path) -> Iterator[tuple[str, str, str, int, float]]:
    """Id, sentence, video, segment and label of every row."""
    for where, row in _rows(file):
        if len(row) != 4:
            raise UserError(f"{where}: {len(row)} columns; it must have 4: id, sentence, video number, label")
        video, _, segment = row[0].rpartition("_")
        yield row[0], row[1], video, whole_number(segment, "id (video_segment)", where), _label(row[3], where)


def _label(text: str, where: str) -> float:
    value = parse_number(text)
    if value is None or value not in POLARITY:
        raise UserError(f"{where}: the last column, the label, is {text!r}; it must be 0 or 1")
    return value


def _vector(row: list[str], where: str) -> tuple[np.ndarray, float]:
    if len(row) < 2:
        raise UserError(f"{where}: {len(row)} columns; it must have features and a label")
    try:
        values = np.array(row[:-1], dtype=np.float32)
    except ValueError as error:
        raise UserError(f"{where}: a feature is not a number: {error}") from None
    return values[None, :], _label(row[-1], where)


def _read_split(
    split: str, files: dict[str, Path], sentences: list[tuple[str, str, str, int, float]], transcripts: Path
) -> Iterator[Utterance]:
    streams = {name: _rows(file) for name, file in files.items()}
    count = 0
    while True:
        rows = {name: next(stream, None) for name, stream in streams.items()}
        exhausted = [name for name, row in rows.items() if row is None]
        if len(exhausted) == len(rows):
            return
        if exhausted:
            longer = next(name for name in rows if name not in exhausted)
            raise UserError(
                f"{files[exhausted[0]]}: {count} rows, {files[longer]} has more; a split's files have the same rows"
            )
        count += 1
        location, index = rows.pop("index") or ("", [])
        number = whole_number(index[0] if index else "", "first column (row of transcripts.csv)", location)
        if not 0 <= number < len(sentences):
            raise UserError(f"{location}: row {number} of {transcripts.name}, which has {len(sentences)}")
        identifier, text, video, segment, label = sentences[number]
        features: dict[str, np.ndarray] = {}
        for name, found in rows.items():
            where, row = found or ("", [])
            features[name], value = _vector(row, where)
            if value != label:
                raise UserError(f"{where}: label {value:g} disagrees with {label:g} of {identifier!r} in {transcripts.name}")
        yield Utterance(
            id=identifier,
            split=split,
            language="en",
            text=text,
            text_features=features["text"],
            audio_features=features["audio"],
            vision_features=features["video"],
            labels={"polarity": POLARITY[label]},
            dialogue_id=video,
            turn=segment,
            speaker=video,
        )
