"""RAVDESS: everything is in the file names."""

from collections import Counter
from pathlib import Path

import pytest
from shared_files import shared_data

from llm_mer.data.sources.ravdess import read_ravdess
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task


def clip(folder: Path, actor: int, emotion: str = "05", sentence: str = "01") -> Path:
    path = folder / f"Actor_{actor:02d}" / f"03-01-{emotion}-02-{sentence}-01-{actor:02d}.wav"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_names_are_decoded(tmp_path: Path) -> None:
    for number in range(1, 9):
        clip(tmp_path, 1, f"{number:02d}")
    path = clip(tmp_path, 2, "06", "02")
    found = list(read_ravdess(tmp_path))
    assert tuple(u.labels["emotion"] for u in found[:8]) == get_task("ravdess").label_names
    last = found[-1]
    assert (last.id, last.audio, last.vision) == ("03-01-06-02-02-01-02", str(path), None)
    assert (last.language, last.speaker, last.text) == ("en", "actor-02", "Dogs are sitting by the door.")
    assert last.tags == ("neutral_words",)


@pytest.mark.parametrize(("actors", "counts"), [(24, (16, 4, 4)), (12, (8, 2, 2)), (7, (4, 1, 2)), (2, (1, 0, 1))])
def test_no_actor_is_in_two_splits(tmp_path: Path, actors: int, counts: tuple[int, ...]) -> None:
    for actor in range(1, actors + 1):
        clip(tmp_path, actor)
    found = list(read_ravdess(tmp_path))
    splits = Counter(u.split for u in found)
    assert tuple(splits[name] for name in ("train", "valid", "test")) == counts
    assert [u.speaker for u in found] == sorted(u.speaker for u in found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("speech.wav", "seven numbers"),
        ("03-01-09-01-01-01-01.wav", "field emotion of the name is '09'"),
        ("03-01-01-01-03-01-01.wav", "field sentence of the name is '03'"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=message) as caught:
        list(read_ravdess(tmp_path))
    assert str(tmp_path / name) in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.wav or \.flac file"):
        list(read_ravdess(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        list(read_ravdess(tmp_path / "none"))


def test_flac_is_read_as_wav_is(tmp_path: Path) -> None:
    first = clip(tmp_path, 1)
    first.rename(first.with_suffix(".flac"))
    clip(tmp_path, 2)
    assert [Path(u.audio or "").suffix for u in read_ravdess(tmp_path)] == [".flac", ".wav"]


def test_real_files() -> None:
    found = list(read_ravdess(shared_data("ravdess")))
    assert len(found) == 120
    assert Counter(u.split for u in found) == {"train": 60, "test": 60}
    assert Counter(u.labels["emotion"] for u in found) == {
        "neutral": 8,
        **dict.fromkeys(["calm", "joy", "sadness", "anger", "fear", "disgust", "surprise"], 16),
    }
    assert all(Path(u.audio or "").is_file() for u in found)
