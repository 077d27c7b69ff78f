"""RAVDESS: English acted speech and song.

Layout: wav or FLAC files anywhere under a folder, as in ``Actor_01/03-01-05-02-01-01-01.wav``. The seven numbers of a
name are modality (03 audio), channel (01 speech, 02 song), emotion, intensity, sentence, repetition and actor.

Conventions: the file is the ``audio``, and the spoken sentence, one of two, is the text; as both are spoken in every
emotion, all are tagged ``neutral_words``. The label is ``emotion`` under the names of the task ``ravdess``. Splits are by
actor, in ascending order of the actors present: the last sixth, rounded up, is the test; the sixth before it, rounded down,
validation; the others training. Of all 24: 21 to 24 test, 17 to 20 validation, half of each women. Of two: the second is the
test, and nothing is left for validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError

EMOTIONS: dict[str, str] = {
    "01": "neutral",
    "02": "calm",
    "03": "joy",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
SENTENCES: dict[str, str] = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
SUFFIXES: tuple[str, ...] = (".wav", ".flac")
NAME = re.compile(r"\d\d(-\d\d){6}")


def read_ravdess(path: Path | str) -> Iterator[Utterance]:
    """Read RAVDESS's clips in order of actor and name. Only file names are read.

    Raises:
        UserError: no such folder, no audio file in it, or a name that does not follow the naming scheme.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; it holds Actor_01 and so on")
    found = (file for suffix in SUFFIXES for file in path.rglob(f"*{suffix}"))
    files = sorted(found, key=lambda file: (file.stem[-2:], file.name))
    if not files:
        raise UserError(f"{path}: no .wav or .flac file here or in its subfolders")
    codes = [_code(file) for file in files]
    splits = _splits({code[6] for code in codes})
    for file, code in zip(files, codes, strict=True):
        yield Utterance(
            id=file.stem,
            split=splits[code[6]],
            language="en",
            text=SENTENCES[code[4]],
            audio=str(file),
            labels={"emotion": EMOTIONS[code[2]]},
            speaker=f"actor-{code[6]}",
            tags=("neutral_words",),
        )


def _code(file: Path) -> list[str]:
    if NAME.fullmatch(file.stem) is None:
        raise UserError(f"{file}: the name must be seven numbers of two digits, as in 03-01-05-02-01-01-01.wav")
    code = file.stem.split("-")
    for place, field, known in ((2, "emotion", EMOTIONS), (4, "sentence", SENTENCES)):
        if code[place] not in known:
            raise UserError(f"{file}: field {field} of the name is {code[place]!r}; it must be one of {', '.join(known)}")
    return code


def _splits(actors: set[str]) -> dict[str, str]:
    ordered = sorted(actors)
    test, valid = -(-len(ordered) // 6), len(ordered) // 6
    names = ["train"] * (len(ordered) - test - valid) + ["valid"] * valid + ["test"] * test
    return dict(zip(ordered, names, strict=True))
