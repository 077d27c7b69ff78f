"""CASIA's pickle: what the integers mean, and a split by speaker."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_files import shared_data

from llm_mer.data.sources.casia import EMOTIONS, read_casia
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task


def entry(number: int = 0, emotion: str = "angry", speaker: str = "wangzhe", sentence: str = "201") -> list[Any]:
    return [f"/home/x/CASIA/{emotion}/{sentence}-{emotion}-{speaker}.wav", np.full(312, 0.5), number]


@pytest.fixture
def entries() -> list[Any]:
    speakers = ("liuchanhg", "ZhaoZuoxiang", "zhaoquanyin", "wangzhe")
    return [entry(n, e, speaker) for speaker in speakers for n, e in enumerate(EMOTIONS)]


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_clips_are_read_and_split_by_speaker(tmp_path: Path, entries: list[Any]) -> None:
    pickled(tmp_path / "librosa_6class_train.p", entries)
    found = list(read_casia(tmp_path))
    assert {u.speaker: u.split for u in found} == {
        "liuchanhg": "train",
        "wangzhe": "train",
        "zhaoquanyin": "valid",
        "ZhaoZuoxiang": "test",
    }
    first = found[0]
    assert (first.id, first.language, first.text) == ("liuchanhg-angry-201", "zh", None)
    assert (first.audio_features.shape, first.audio_features.dtype) == ((1, 312), np.float32)
    assert [u.labels["emotion"] for u in found[:6]] == ["anger", "fear", "joy", "neutral", "sadness", "surprise"]
    for utterance in found:
        get_task("emotion").class_index(utterance.labels["emotion"])


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path, entries: list[Any]) -> None:
    one = {u.id: u.split for u in read_casia(pickled(tmp_path / "a.p", entries))}
    assert one == {u.id: u.split for u in read_casia(pickled(tmp_path / "b.p", entries[::-1]))}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry(1), "integer 1 does not agree with path"),
        (entry(0, "bored"), "names the emotion 'bored'"),
        (["a.wav", np.zeros(312), 0], "path 'a.wav' does not end in"),
        ([*entry(), 1], "must be [path, features, integer]"),
        ([entry()[0], np.zeros((1, 312)), 0], "features must be one row"),
        ([entry()[0], [0.5], 0], "features must be one row"),
    ],
)
def test_wrong_entries_name_file_place_and_field(tmp_path: Path, entries: list[Any], wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"x\.p: entry 1: ") as caught:
        list(read_casia(pickled(tmp_path / "x.p", [entries[0], wrong, *entries[1:]])))
    assert message in str(caught.value)


def test_lengths_that_disagree(tmp_path: Path, entries: list[Any]) -> None:
    entries[3][1] = np.zeros(311)
    with pytest.raises(UserError, match=r"x\.p: features have lengths \[311, 312\]"):
        list(read_casia(pickled(tmp_path / "x.p", entries)))


def test_files_that_are_not_casia(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 pickles"):
        list(read_casia(tmp_path))
    with pytest.raises(UserError, match=r"none\.p: no such file"):
        list(read_casia(tmp_path / "none.p"))
    for content in ({}, []):
        with pytest.raises(UserError, match="must be a list"):
            list(read_casia(pickled(tmp_path / "x.p", content)))
    with pytest.raises(UserError, match="1 speakers"):
        list(read_casia(pickled(tmp_path / "x.p", [entry()])))


def test_real_file() -> None:
    found = list(read_casia(shared_data("casia")))
    assert len(found) == len({u.id for u in found}) == 1200
    assert Counter(u.split for u in found) == {"train": 600, "valid": 300, "test": 300}
    assert set(Counter(u.labels["emotion"] for u in found).values()) == {200}
    assert set(Counter(u.speaker for u in found).values()) == {300}
    assert all(u.audio_features.shape == (1, 312) and np.isfinite(u.audio_features).all() for u in found)
