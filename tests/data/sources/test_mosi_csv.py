"""declare-lab's MOSI files: transcripts are found by the index, labels agree in every file."""

from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.sources.mosi_csv import read_mosi_csv
from llm_mer.errors import UserError

TRANSCRIPTS = ['"b_1","YES","2","1"', '"a-_x_10","NO","1","0"', '"a-_x_2","WELL, OK","1","1"']
INDEX = {"train": ["2", "1"], "test": ["0"]}
LABELS = {"train": "10", "test": "1"}
SIZES = {"text": 4, "audio": 3, "video": 2}


def lines(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


@pytest.fixture(params=["nested", "flat"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    lines(tmp_path / "transcripts.csv", TRANSCRIPTS)
    for split, index in INDEX.items():
        lines(tmp_path / f"text_{split}.csv", [f'"{row}","0.5","-1.5"' for row in index])
        for name, size in SIZES.items():
            where = tmp_path / name if request.param == "nested" else tmp_path
            rows = [",".join([f'"{n}.5"'] * size + [f'"{label}"']) for n, label in enumerate(LABELS[split])]
            lines(where / f"{name}_{split}0.csv", rows)
    return tmp_path


def change(folder: Path, name: str, old: str, new: str) -> None:
    (file,) = folder.rglob(name)
    content = file.read_text(encoding="utf-8")
    assert old in content
    file.write_text(content.replace(old, new, 1), encoding="utf-8")


def test_rows_are_joined_with_their_transcripts(folder: Path) -> None:
    found = list(read_mosi_csv(folder))
    assert [(u.id, u.split, u.text, u.dialogue_id, u.turn) for u in found] == [
        ("a-_x_2", "train", "WELL, OK", "a-_x", 2),
        ("a-_x_10", "train", "NO", "a-_x", 10),
        ("b_1", "test", "YES", "b", 1),
    ]
    assert [u.labels for u in found] == [{"polarity": p} for p in ("positive", "negative", "positive")]
    second = found[1]
    features = (second.text_features, second.audio_features, second.vision_features)
    assert [values.shape for values in features] == [
        (1, 4),
        (1, 3),
        (1, 2),
    ]
    assert second.audio_features.dtype == np.float32
    assert (second.audio_features == 1.5).all()


def test_missing_file(folder: Path) -> None:
    for file in list(folder.rglob("*.csv")):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=f"{file.name}: no such file"):
            list(read_mosi_csv(folder))
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("text_train0.csv", '"1"\n', '"2"\n', "text_train0.csv:1: the last column, the label, is '2'"),
        ("audio_train0.csv", '"0"\n', '"1"\n', "audio_train0.csv:2: label 1 disagrees with 0 of 'a-_x_10'"),
        ("video_train0.csv", '"0.5"', '"x"', "video_train0.csv:1: a feature is not a number"),
        ("video_train0.csv", '"0.5","0.5","1"', '"1"', "video_train0.csv:1: 1 columns"),
        ("video_train0.csv", '"1.5","1.5","0"\n', "", "video_train0.csv: 1 rows"),
        ("text_train.csv", '"1","0.5","-1.5"\n', "", "text_train.csv: 1 rows"),
        ("text_train.csv", '"2"', '"3"', "text_train.csv:1: row 3 of transcripts.csv, which has 3"),
        ("text_train.csv", '"2"', '"x"', "text_train.csv:1: field first column"),
        ("transcripts.csv", ',"2","1"', ',"1"', "transcripts.csv:1: 3 columns"),
        ("transcripts.csv", "b_1", "b", "transcripts.csv:1: field id (video_segment)"),
    ],
)
def test_files_that_disagree_are_named(folder: Path, name: str, old: str, new: str, message: str) -> None:
    change(folder, name, old, new)
    with pytest.raises(UserError) as caught:
        list(read_mosi_csv(folder))
    assert message in str(caught.value)
