"""CPED's CSV files: thirteen emotions, dialogues and turns from the ids."""

from collections import Counter
from pathlib import Path

import pytest
from shared_files import shared_data

from llm_mer.data.sources.cped import COLUMNS, FILES, read_cped
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

HEADER = (
    "TV_ID,Dialogue_ID,Utterance_ID,Speaker,Gender,Age,Neuroticism,Extraversion,Openness,Agreeableness,"
    "Conscientiousness,Scene,FacePosition_LU,FacePosition_RD,Sentiment,Emotion,DA,Utterance"
)


def row(emotion: str = "happy", sentiment: str = "positive", turn: str = "27_000_000", dialogue: str = "27_000") -> str:
    return f"27,{dialogue},{turn},林宛瑜,female,young,low,high,high,high,high,car,,,{sentiment},{emotion},thanking,谢谢你哦"


def write(folder: Path, split: str, *rows: str, header: str = HEADER) -> None:
    (folder / FILES[split]).write_text("\n".join([header, *rows, ""]), encoding="utf-8-sig")


def test_splits_that_are_there_are_read(tmp_path: Path) -> None:
    write(tmp_path, "valid", row(), row("neutral", "neutral", "27_000_001"))
    write(tmp_path, "test", row("astonished", "negative", "31_104_010", "31_104"))
    found = list(read_cped(tmp_path))
    assert [(u.id, u.split, u.dialogue_id, u.turn) for u in found] == [
        ("27_000_000", "valid", "27_000", 0),
        ("27_000_001", "valid", "27_000", 1),
        ("31_104_010", "test", "31_104", 10),
    ]
    assert [u.labels for u in found] == [
        {"emotion": "joy", "polarity": "positive"},
        {"emotion": "neutral"},
        {"emotion": "surprise", "polarity": "negative"},
    ]
    assert (found[0].text, found[0].speaker, found[0].language) == ("谢谢你哦", "林宛瑜", "zh")
    assert [u.split for u in read_cped(tmp_path / "test_split.csv")] == ["test"]


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "test_split.csv"):
        with pytest.raises(UserError, match=r"no such file; a CPED folder holds train_split\.csv"):
            list(read_cped(path))


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_column(tmp_path: Path, column: str) -> None:
    names = ["x" if name == column else name for name in HEADER.split(",")]
    write(tmp_path, "test", row(), header=",".join(names))
    with pytest.raises(UserError, match=rf"test_split\.csv: no column {column}"):
        list(read_cped(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("bored"), "field Emotion: label 'bored' is not in task 'cped'"),
        (row(sentiment="x"), "field Sentiment is 'x'"),
        (row(turn="27_001_000"), "Utterance_ID '27_001_000' does not belong to Dialogue_ID '27_000'"),
        (row(turn="27_000_x"), "field Utterance_ID is 'x'"),
    ],
)
def test_wrong_rows_name_file_line_and_field(tmp_path: Path, wrong: str, message: str) -> None:
    write(tmp_path, "test", row(), wrong)
    with pytest.raises(UserError, match=r"test_split\.csv:3: ") as caught:
        list(read_cped(tmp_path))
    assert message in str(caught.value)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test_split.csv").write_bytes("\n".join([HEADER, row()]).encode("gb18030"))
    with pytest.raises(UserError, match=r"test_split\.csv: not UTF-8"):
        list(read_cped(tmp_path))


def test_real_files() -> None:
    found = list(read_cped(shared_data("cped")))
    assert Counter(u.split for u in found) == {"valid": 11137, "test": 27438}
    assert len({u.id for u in found}) == len(found)
    assert {u.labels["emotion"] for u in found} == set(get_task("cped").label_names)
    assert get_task("cped").num_classes == 13
    assert Counter(u.labels.get("polarity") for u in found if u.split == "test") == {
        "negative": 12977,
        None: 7991,
        "positive": 6470,
    }
