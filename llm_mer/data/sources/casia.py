"""CASIA: Chinese acted speech as audio statistics, from Renovamen/Speech-Emotion-Recognition.

Layout: a pickle, or a folder with one ``*.p``, ``*.pkl`` or ``*.pickle``: a list of ``[path, float64[312], int]``. The path
ends in ``{folder of the emotion}/{sentence}-{emotion}-{speaker}.wav``; the integer is the index of that folder's name in
alphabetical order: 0 angry, 1 fear, 2 happy, 3 neutral, 4 sad, 5 surprise. The two must agree.

Conventions: the 312 statistics are ``audio_features`` of one step; there is no text. The label is ``emotion`` under the
names of the task of that name (happy is joy). Splits are by speaker, in case-insensitive order of their names: the
last is the test, the one before it validation, the others training. In the published file these are liuchanhg and
wangzhe, zhaoquanyin, ZhaoZuoxiang (600, 300 and 300 clips); all speak the same fifty sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError

EMOTIONS: dict[str, str] = {
    "angry": "anger",
    "fear": "fear",
    "happy": "joy",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
"""Emotion word in the file → label, in the order of the file's integers."""
SUFFIXES: tuple[str, ...] = (".p", ".pkl", ".pickle")


def read_casia(path: Path | str) -> Iterator[Utterance]:
    """Read CASIA's clips.

    Raises:
        UserError: no such file, a malformed entry, a path and an integer that name different emotions, different feature
            sizes, fewer than three speakers.
    """
    path = Path(path)
    file = _pickle_in(path) if path.is_dir() else path
    entries = load_pickle(file)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: not a CASIA pickle: it must be a list of [path, features, integer]")
    clips = [_clip(entry, f"{file}: entry {index}") for index, entry in enumerate(entries)]
    sizes = {len(features) for _, _, _, features in clips}
    if len(sizes) > 1:
        raise UserError(f"{file}: features have lengths {sorted(sizes)}; every entry must have the same")
    splits = _splits({speaker for _, _, speaker, _ in clips}, file)
    for sentence, emotion, speaker, features in clips:
        yield Utterance(
            id=f"{speaker}-{emotion}-{sentence}",
            split=splits[speaker],
            language="zh",
            audio_features=features[None, :].astype(np.float32),
            labels={"emotion": EMOTIONS[emotion]},
            speaker=speaker,
        )


def _pickle_in(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) != 1:
        raise UserError(f"{folder}: {len(files)} pickles ({', '.join(SUFFIXES)}) here; name the file")
    return files[0]


def _clip(entry: Any, where: str) -> tuple[str, str, str, np.ndarray]:
    """Sentence, emotion, speaker and features of an entry."""
    if not isinstance(entry, list | tuple) or len(entry) != 3:
        raise UserError(f"{where}: it must be [path, features, integer]")
    name, features, index = entry
    name_parts = PurePosixPath(str(name)).stem.split("-")
    if len(name_parts) != 3:
        raise UserError(f"{where}: path {name!r} does not end in sentence-emotion-speaker.wav")
    sentence, emotion, speaker = name_parts
    if emotion not in EMOTIONS:
        raise UserError(f"{where}: path {name!r} names the emotion {emotion!r}; known are {', '.join(EMOTIONS)}")
    if index != _class_number(emotion):
        raise UserError(
            f"{where}: integer {index!r} does not agree with path {name!r}: {emotion} is {_class_number(emotion)}"
        )
    if not isinstance(features, np.ndarray) or features.ndim != 1 or features.dtype.kind != "f":
        raise UserError(f"{where}: features must be one row of floating-point numbers")
    return sentence, emotion, speaker, features


def _class_number(emotion: str) -> int:
    return list(EMOTIONS).index(emotion)


def _splits(speakers: set[str], file: Path) -> dict[str, str]:
    if len(speakers) < 3:
        raise UserError(f"{file}: {len(speakers)} speakers; a split by speaker needs three")
    *train, valid, test = sorted(speakers, key=lambda name: (name.casefold(), name))
    return {**dict.fromkeys(train, "train"), valid: "valid", test: "test"}
