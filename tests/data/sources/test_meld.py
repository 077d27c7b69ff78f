"""MELD's CSV files: order, labels, clips, and apostrophes in every state of damage."""

from collections import Counter
from pathlib import Path

import pytest
from shared_files import shared_data

from llm_mer.data.sources.meld import FILES, read_meld, repair_text
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
TAIL = '8,21,"00:16:16,059","00:16:21,731"'


def write(folder: Path, split: str, *rows: bytes, header: str = HEADER) -> None:
    (folder / FILES[split]).write_bytes(b"\n".join([header.encode(), *rows, b""]))


def row(text: str, emotion: str = "joy", sentiment: str = "positive", dialogue: str = "0", turn: str = "0") -> bytes:
    return f'1,"{text}",Chandler,{emotion},{sentiment},{dialogue},{turn},{TAIL}'.encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "train", row("Hello, you.\nYes?"), row("No", "neutral", "neutral", "0", "1"))
    write(tmp_path, "valid", row("Oh", "anger", "negative"))
    write(tmp_path, "test", row("Well", "surprise", "negative", "3", "12"))
    return tmp_path


def test_dialogues_are_unique_over_the_splits(folder: Path) -> None:
    found = list(read_meld(folder))
    assert [(u.id, u.split, u.dialogue_id, u.turn) for u in found] == [
        ("train-dia0-utt0", "train", "train-dia0", 0),
        ("train-dia0-utt1", "train", "train-dia0", 1),
        ("valid-dia0-utt0", "valid", "valid-dia0", 0),
        ("test-dia3-utt12", "test", "test-dia3", 12),
    ]
    assert found[0].text == "Hello, you.\nYes?"
    assert [u.labels for u in found] == [
        {"emotion": "joy", "polarity": "positive"},
        {"emotion": "neutral"},
        {"emotion": "anger", "polarity": "negative"},
        {"emotion": "surprise", "polarity": "negative"},
    ]
    assert {(u.language, u.speaker, u.audio, u.vision) for u in found} == {("en", "Chandler", None, None)}


def test_one_file_is_one_split(folder: Path) -> None:
    assert [u.split for u in read_meld(folder / "dev_sent_emo.csv")] == ["valid"]


@pytest.mark.parametrize(
    "damaged",
    [
        "it’s".encode(),
        "it’s".encode("cp1252"),  # a byte of windows-1252 in a UTF-8 file
        b"it\xc2\x92s",  # that byte read as Latin-1, written as UTF-8
        "itâ€™s".encode(),  # UTF-8 read as windows-1252, written as UTF-8
        "it’s".encode().decode("latin1").encode(),  # UTF-8 read as Latin-1, written as UTF-8
    ],
)
def test_damaged_apostrophes_are_repaired(folder: Path, damaged: bytes) -> None:
    write(folder, "test", row("@", "joy").replace(b"@", damaged + b" caf\xc3\xa9"))
    found = list(read_meld(folder / FILES["test"]))
    assert found[0].text == "it’s café"


@pytest.mark.parametrize("text", ["café…", "â, €", "naïve — “yes”", "plain", "中文", "â€"])
def test_whole_text_is_left_alone(text: str) -> None:
    assert repair_text(text) == text


def test_other_marks_are_repaired() -> None:
    assert repair_text("â€œyesâ€\x9d â€¦ â€” \udc93no\udc94 \x85") == "“yes” … — “no” …"


@pytest.mark.parametrize("given", [True, False])
def test_clips_that_exist_are_set(folder: Path, tmp_path_factory: pytest.TempPathFactory, given: bool) -> None:
    media = tmp_path_factory.mktemp("media") if given else folder
    (media / "train_splits").mkdir()
    clip = media / "train_splits" / "dia0_utt1.mp4"
    clip.touch()
    found = list(read_meld(folder, media=media if given else None))
    assert [(u.audio, u.vision) for u in found] == [(None, None), (str(clip), str(clip)), (None, None), (None, None)]


def test_a_media_folder_without_clips_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of clips here; media must contain train_splits"):
        list(read_meld(folder, media=tmp_path))


@pytest.mark.parametrize("split", FILES)
def test_missing_file(folder: Path, split: str) -> None:
    (folder / FILES[split]).unlink()
    with pytest.raises(UserError, match=f"{FILES[split]}: no such file"):
        list(read_meld(folder))


@pytest.mark.parametrize("column", ["Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"])
def test_missing_column(folder: Path, column: str) -> None:
    write(folder, "valid", header=HEADER.replace(f"{column},", "x,", 1))
    with pytest.raises(UserError, match=rf"dev_sent_emo\.csv: no column {column}"):
        list(read_meld(folder))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("a", "happy"), "field Emotion: label 'happy' is not in task 'meld'"),
        (row("a", sentiment="good"), "field Sentiment is 'good'"),
        (row("a", dialogue="x"), "field Dialogue_ID is 'x'"),
        (row("a", turn=""), "field Utterance_ID is ''"),
        (b"1,a,Chandler", "the row ends before column Emotion"),
    ],
)
def test_wrong_rows_name_file_line_and_field(folder: Path, wrong: bytes, message: str) -> None:
    write(folder, "train", row("fine"), wrong)
    with pytest.raises(UserError, match=r"train_sent_emo\.csv:3: ") as caught:
        list(read_meld(folder))
    assert message in str(caught.value)


def test_real_files() -> None:
    found = list(read_meld(shared_data("meld")))
    assert Counter(u.split for u in found) == {"train": 9989, "valid": 1109, "test": 2610}
    assert len({u.id for u in found}) == len(found)
    assert len({(u.dialogue_id, u.turn) for u in found}) == len(found)
    assert sum(u.labels["emotion"] == "neutral" for u in found if u.split == "test") == 1256
    assert {u.labels["emotion"] for u in found} == set(get_task("meld").label_names)
    assert not any("\x80" <= c <= "\x9f" or c == "\ufffd" for u in found for c in u.text or "")
    assert found[1].text == "You must’ve had your hands full."
