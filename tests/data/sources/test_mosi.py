"""The bilingual MOSI folder, read a row at a time."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_files import shared_data

from llm_mer.data.sources.common import npz_rows, npz_shape
from llm_mer.data.sources.mosi import COLUMNS, DECLARE_LAB_TEST, read_mosi
from llm_mer.errors import UserError

SEEN, UNSEEN = "1DmNV9C1hbY", sorted(DECLARE_LAB_TEST)[0]
ROWS = [
    (f"{SEEN}_10", SEEN, 10, "train", 2.6, "KIDS LOVE THE FILM", "孩子们喜欢"),
    (f"{SEEN}_2", SEEN, 2, "test", 0.0, "IT IS, WELL, A FILM", "是电影"),
    (f"{UNSEEN}_1", UNSEEN, 1, "valid", -1.4, "BAD", "不好"),
]
SIZES = {"text": 4, "audio": 3, "vision": 2}


def arrays(rows: int = len(ROWS)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=(rows, size)).astype(np.float32) for name, size in SIZES.items()}


def write(folder: Path, features: dict[str, np.ndarray] | None = None, rows: Any = ROWS, columns: Any = COLUMNS) -> Path:
    np.savez_compressed(folder / "features.npz", **(arrays() if features is None else features))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([columns, *rows])
    (folder / "index.csv").write_text(stream.getvalue(), encoding="utf-8")
    return folder


def test_each_sentence_comes_once_a_language_with_the_same_features(tmp_path: Path) -> None:
    found = list(read_mosi(write(tmp_path)))
    assert [u.id for u in found[:3]] == [f"{SEEN}_10-en", f"{SEEN}_10-zh", f"{SEEN}_2-en"]
    assert [u.text for u in found[:4]] == ["kids love the film", "孩子们喜欢", "it is, well, a film", "是电影"]
    for number, utterance in enumerate(found):
        for name, values in arrays().items():
            np.testing.assert_array_equal(getattr(utterance, f"{name}_features"), values[number // 2][None])
    assert [u.labels for u in found[::2]] == [
        {"sentiment": 2.6, "polarity": "positive"},
        {"sentiment": 0.0, "polarity": "positive"},
        {"sentiment": -1.4, "polarity": "negative"},
    ]
    assert (found[0].dialogue_id, found[0].turn, found[0].speaker) == (SEEN, 10, SEEN)


def test_the_splits_are_by_video_or_the_files_own(tmp_path: Path) -> None:
    write(tmp_path)
    assert [u.split for u in read_mosi(tmp_path, languages=["zh"])] == ["train", "train", "test"]
    assert [u.split for u in read_mosi(tmp_path, languages=["zh"], split="official")] == ["train", "test", "valid"]


def changed(place: int, value: Any) -> list[tuple[Any, ...]]:
    return [(*ROWS[0][:place], value, *ROWS[0][place + 1 :]), *ROWS[1:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": changed(4, "3.5")}, r"index\.csv:2: field score is '3.5'; it must be a number in \[-3, 3\]"),
        ({"rows": changed(2, "x")}, r"index\.csv:2: field segment is 'x'; it must be a whole number"),
        ({"rows": ROWS[:2]}, r"features\.npz: text has shape \(3, 4\); it must be \(2, size\): index\.csv has 2 rows"),
        ({"columns": ("id", "video", "segment", "part", *COLUMNS[4:])}, r"index\.csv: no column split; found id, video"),
        ({"features": {**arrays(), "audio": np.zeros(3)}}, r"features\.npz: audio has shape \(3,\)"),
        (
            {"features": {**arrays(), "vision": np.array([["a"]] * 3)}},
            r"features\.npz: vision holds <U1; it must hold numbers",
        ),
        ({"features": {"text": arrays()["text"]}}, r"features\.npz: no array named audio"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_mosi(write(tmp_path, **options)))


def test_missing_files_unknown_splits_and_damaged_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.csv: no such file; a MOSI folder holds"):
        list(read_mosi(tmp_path))
    with pytest.raises(UserError, match="unknown MOSI split 'mine'; choose from declare_lab, official"):
        list(read_mosi(write(tmp_path), split="mine"))
    with pytest.raises(UserError, match=r"index\.csv:2: field split is 'dev'; it must be one of train, valid, test"):
        list(read_mosi(write(tmp_path, rows=changed(3, "dev")), split="official"))
    content = (write(tmp_path) / "features.npz").read_bytes()
    for damaged in (content[:100], b"", content[:60] + b"\xff" * 40 + content[100:]):
        (tmp_path / "features.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"features\.npz: (text|audio|vision): damaged or not an \.npz file"):
            list(read_mosi(tmp_path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("block", [1, 3, 7, 256])
def test_rows_of_an_archive_are_those_numpy_loads(tmp_path: Path, save: Any, block: int) -> None:
    values = np.random.default_rng(0).normal(size=(7, 5))
    save(tmp_path / "a.npz", values=values, other=np.zeros(2))
    assert npz_shape(tmp_path / "a.npz", "values") == (7, 5)
    np.testing.assert_array_equal(np.stack(list(npz_rows(tmp_path / "a.npz", "values", block))), values)


def test_an_array_with_columns_first_is_refused_rather_than_misread(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", values=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    with pytest.raises(UserError, match=r"values has shape \(2, 3\), columns first; it must be"):
        list(npz_rows(tmp_path / "a.npz", "values"))


def test_real_files() -> None:
    folder = shared_data("mosi")
    found = list(read_mosi(folder, languages=["en"]))
    assert len(found) == 2199
    assert len({u.dialogue_id for u in found}) == 93
    assert {split: sum(u.split == split for u in found) for split in ("train", "test")} == {"train": 1447, "test": 752}
    assert sum(1 for _ in read_mosi(folder)) == 2 * 2199
    with np.load(folder / "features.npz") as stored:
        np.testing.assert_array_equal(np.concatenate([u.audio_features for u in found]), stored["audio"])
