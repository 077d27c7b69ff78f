"""Manifests of users' own clips are read as they stand, and each mistake is named by file, line and field."""

import contextlib
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import read_manifest, stream_manifest, write_manifest
from llm_mer.data.sources.numbers import parse_number, parse_whole_number
from llm_mer.errors import UserError

FULL = {
    "id": "a",
    "split": "train",
    "language": "zh",
    "text": "我很高兴",
    "audio": "sound/a.wav",
    "video": "clips/a.mp4",
    "dialogue_id": "d1",
    "turn": 3,
    "speaker": "Ana",
    "tags": ["conflict", "neutral_words"],
    "emotion": "joy",
    "sentiment": -1.4,
}


def jsonl(folder: Path, *entries: Any) -> Path:
    path = folder / "clips.jsonl"
    lines = [e if isinstance(e, str) else json.dumps(e, ensure_ascii=False) for e in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def csv_file(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    path = folder / "clips.csv"
    path.write_bytes(content.encode(encoding))
    return path


def expected(folder: Path) -> Utterance:
    return Utterance(
        id="a",
        split="train",
        language="zh",
        text="我很高兴",
        audio=str(folder / "sound/a.wav"),
        vision=str(folder / "clips/a.mp4"),
        labels={"emotion": "joy", "sentiment": -1.4},
        dialogue_id="d1",
        turn=3,
        speaker="Ana",
        tags=("conflict", "neutral_words"),
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def test_every_field_of_a_jsonl_line_is_read_with_paths_beside_the_manifest(tmp_path: Path) -> None:
    assert read_manifest(jsonl(tmp_path, FULL)) == [expected(tmp_path)]


def test_every_column_of_a_csv_row_is_read(tmp_path: Path) -> None:
    row = {**FULL, "tags": "conflict;neutral_words"}
    path = csv_file(tmp_path, ",".join(row) + "\n" + ",".join(str(v) for v in row.values()) + "\n")
    assert read_manifest(path) == [expected(tmp_path)]
    assert read_manifest(str(path)) == [expected(tmp_path)]


def test_a_csv_of_a_spreadsheet_with_a_mark_at_its_start_and_crlf_is_read(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path, 'id,text,turn\r\na,"Well, ""no"", I\nam not",2.0\r\nb,,\r\n'.replace("b,,", "b,b,"), "utf-8-sig"
    )
    first, second = read_manifest(path)
    assert (first.text, first.turn) == ('Well, "no", I\nam not', 2)
    assert (second.text, second.turn) == ("b", None)


def test_a_jsonl_with_a_mark_at_its_start_and_blank_lines_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '\ufeff{"id": "a", "text": "hello"}', "", "  ", {"id": "b", "text": "you"})
    assert [u.id for u in read_manifest(path)] == ["a", "b"]


def test_what_is_not_given_has_its_default(tmp_path: Path) -> None:
    (found,) = read_manifest(jsonl(tmp_path, {"id": 7, "text": "hello", "audio": None, "speaker": None}))
    assert found == Utterance("7", split="test", language="en", text="hello")


@pytest.mark.parametrize("modality", [{"text": "hi"}, {"audio": "a.wav"}, {"video": "a.mp4"}])
def test_one_modality_is_enough(tmp_path: Path, modality: dict[str, str]) -> None:
    (found,) = read_manifest(jsonl(tmp_path, {"id": "a", **modality}))
    assert [bool(found.text), bool(found.audio), bool(found.vision)].count(True) == 1


def test_an_absolute_path_is_kept(tmp_path: Path) -> None:
    (found,) = read_manifest(jsonl(tmp_path, {"id": "a", "audio": "/sounds/a.wav"}))
    assert found.audio == "/sounds/a.wav"


@pytest.mark.parametrize(
    ("entry", "language"),
    [({"text": "hello"}, "en"), ({"text": "你好 hello"}, "zh"), ({"audio": "a.wav"}, ""), ({"text": "…"}, "")],
)
def test_the_language_follows_from_the_text(tmp_path: Path, entry: dict[str, str], language: str) -> None:
    (found,) = read_manifest(jsonl(tmp_path, {"id": "a", **entry}))
    assert found.language == language


@pytest.mark.parametrize("text", ["¿qué?", "Ich bin sehr froh", "행복해요", "うれしい"])
def test_a_text_in_a_script_of_neither_language_is_refused_by_line(tmp_path: Path, text: str) -> None:
    path = jsonl(tmp_path, {"id": "a", "text": text})
    with pytest.raises(UserError, match=r"clips.jsonl:1: language cannot be told.*give 'language', one of en, zh"):
        read_manifest(path)


def test_a_language_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    (found,) = read_manifest(jsonl(tmp_path, {"id": "a", "text": "OK", "language": "zh"}))
    assert found.language == "zh"


def test_labels_are_words_or_numbers(tmp_path: Path) -> None:
    (one,) = read_manifest(csv_file(tmp_path, "id,text,emotion,sentiment,polarity\na,hi,joy,-0.8,positive\n"))
    (other,) = read_manifest(jsonl(tmp_path, {"id": "a", "text": "hi", "sentiment": 2}))
    assert one.labels == {"emotion": "joy", "sentiment": -0.8, "polarity": "positive"}
    assert other.labels == {"sentiment": 2.0}


def test_labels_of_a_task_of_ones_own_are_read_when_they_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "a", "text": "hi", "arousal": 0.4})
    assert read_manifest(path, ["arousal"])[0].labels == {"arousal": 0.4}
    with pytest.raises(UserError, match=r"unknown fields \['arousal'\]"):
        read_manifest(path)


# --- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = {"id": "good", "text": "hello"}
WRONG: list[tuple[Any, str]] = [
    ('{"id": "a", ', r"not JSON: .* at column \d+"),
    ("[1, 2]", "a manifest line is a JSON object, found list"),
    ({"id": "a", "txt": "hi"}, r"unknown fields \['txt'\]; known are id, split, language, text, .*emotion, sentiment"),
    ({"text": "hi"}, "no field 'id'"),
    ({"id": "a", "speaker": "Ana"}, "give at least one of text, audio, video"),
    ({"id": "a", "text": None}, "give at least one of text, audio, video"),
    ({"id": "a", "text": "hi", "split": "dev"}, "field 'split' is 'dev'; it must be one of train, valid, test"),
    ({"id": "a", "text": "hi", "language": "de"}, "field 'language' is 'de'; it must be one of en, zh"),
    ({"id": "a", "text": 5}, "field 'text' is 5; it must be a string"),
    ({"id": "a", "text": ["hi", "you"]}, r"field 'text' is \['hi', 'you'\]; it must be a string"),
    ({"id": "a", "audio": 5}, "field 'audio' is 5; it must be a string"),
    ({"id": "a", "text": "hi", "turn": "third"}, "field 'turn' is 'third'; it must be a whole number"),
    ({"id": "a", "text": "hi", "turn": 1.5}, r"field 'turn' is 1\.5; it must be a whole number"),
    ({"id": "a", "text": "hi", "turn": True}, "field 'turn' is True; it must be a whole number"),
    ({"id": "a", "text": "hi", "turn": [1]}, r"field 'turn' is \[1\]; it must be a whole number"),
    ({"id": "a", "text": "hi", "tags": 5}, "field 'tags' is 5; it must be a list of words"),
    ({"id": "a", "text": "hi", "tags": [5]}, r"field 'tags' is \[5\]; it must be a list of words"),
    ({"id": "a", "text": "hi", "emotion": ["joy"]}, r"field 'emotion' is \['joy'\]; it must be a word or a number"),
    ({"id": "a", "text": "hi", "sentiment": True}, "field 'sentiment' is True; it must be a word or a number"),
    ('{"id": "a", "text": "hi", "sentiment": NaN}', "field 'sentiment' is nan; it must be a word or a finite number"),
    ({"id": "a", "text": "hi", "sentiment": "inf"}, "field 'sentiment' is 'inf'; it must be a word or a finite number"),
    ('{"id": "a", "text": "hi \\ud83d"}', r"field 'text' is 'hi \\ud83d': a lone surrogate"),
    ('{"id": "a", "text": "hi", "tags": ["\\ude00"]}', r"field 'tags' is .*: a lone surrogate"),
    ({"id": "good", "text": "hi"}, r"id 'good' is already used at .*clips\.jsonl:1"),
]


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_a_mistake_in_jsonl_is_named_by_file_line_and_field(tmp_path: Path, entry: Any, message: str) -> None:
    path = jsonl(tmp_path, GOOD, "", entry)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_lines_that_cannot_be_used_are_handed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD, "not json", {"id": "b", "colour": 1}, GOOD, {"id": "c", "text": "hi"})
    refused: list[tuple[str, str]] = []
    assert [u.id for u in read_manifest(path, refused=refused)] == ["good", "c"]
    assert [where for where, _ in refused] == [f"{path}:{line}" for line in (2, 3, 4)]
    assert all(message.startswith(f"{where}: ") for where, message in refused)
    with pytest.raises(UserError, match=r"clips\.jsonl:1: not JSON"):
        read_manifest(jsonl(tmp_path, "not json", "nor this"), refused=[])


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("id,text,split\na,hi,train\nb,hi,dev\n", 3, "field 'split' is 'dev'; it must be one of train, valid, test"),
        ("id,text,split\na,hi,train\n\nb,hi,dev\n", 4, "field 'split' is 'dev'"),
        ('id,text,split\na,"two\nlines",train\nb,hi,dev\n', 4, "field 'split' is 'dev'"),
        ("id,text\na,hi\nb,Hello, world\n", 3, "more cells than columns; quote texts that contain a comma"),
        ("id,text,turn\na,hi,third\n", 2, "field 'turn' is 'third'; it must be a whole number"),
        ("id,text\n,hi\n", 2, "no field 'id'"),
        ("id,text\na,\n", 2, "give at least one of text, audio, video"),
        ("id,text\na,hi\na,you\n", 3, r"id 'a' is already used at .*clips\.csv:2"),
        ("id,txt\na,hi\n", 2, r"unknown fields \['txt'\]"),
        ("id,text,sentiment\na,hi,nan\n", 2, "field 'sentiment' is 'nan'; it must be a word or a finite number"),
    ],
)
def test_a_mistake_in_csv_is_named_by_file_line_and_field(tmp_path: Path, content: str, line: int, message: str) -> None:
    path = csv_file(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_are_separated_by_commas_semicolons_or_tabs(tmp_path: Path, delimiter: str, mark: str) -> None:
    path = tmp_path / ("clips.tsv" if delimiter == "\t" else "clips.csv")
    rows = [["id", "text", "emotion"], ["a", f"Well{delimiter} hello, you; there", "joy"], ["b", "two\nlines", "fear"]]
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write(mark)
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    assert [[u.id, u.text, u.labels["emotion"]] for u in read_manifest(path)] == rows[1:]


def test_a_header_with_two_separators_is_refused_and_a_cell_too_many_names_the_separator(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "id;text,split\na;b,train\n")
    with pytest.raises(UserError, match=r"clips\.csv:1: the header has a comma and a semicolon between names; .* quote"):
        read_manifest(path)
    path = csv_file(tmp_path, "id;text\na;b;c\n")
    with pytest.raises(UserError, match=r"clips\.csv:2: more cells than columns; quote texts that contain a semicolon"):
        read_manifest(path)


@pytest.mark.parametrize(("encoding", "named"), [("gb18030", "iconv -f GBK"), ("utf-16", "iconv -f UTF-16")])
def test_a_table_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path, encoding: str, named: str) -> None:
    path = tmp_path / "clips.csv"
    path.write_bytes('id,text\na,"我很高兴"\n'.encode(encoding))
    with pytest.raises(UserError, match="not UTF-8 text") as caught:
        read_manifest(path)
    assert "in Excel: CSV UTF-8" in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["clips.jsonl", "clips.csv"])
def test_a_manifest_in_another_encoding_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes('id,text\na,"我很高兴"\n'.encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8 text") as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", "id,text\n"), ("a.csv", "")])
def test_an_empty_manifest_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: the manifest is empty"):
        read_manifest(tmp_path / name)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: no such manifest"):
        read_manifest(tmp_path / "gone.jsonl")


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(UserError, match=r"a\.xlsx: a manifest is a \.jsonl or \.csv file"):
        read_manifest(tmp_path / "a.xlsx")


# --- writing ----------------------------------------------------------------------------------------------------------


def corpus(folder: Path) -> list[Utterance]:
    return [
        expected(folder),
        Utterance("b", "valid", "en", 'He said "no",\nand left', labels={"sentiment": 0.0}, tags=()),
        Utterance("c", "test", "en", vision=str(folder / "c.mp4"), dialogue_id="d", turn=0),
    ]


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    path = write_manifest(corpus(tmp_path), tmp_path / "out.jsonl")
    assert read_manifest(path) == corpus(tmp_path)
    assert [json.loads(line).get("video") for line in path.read_text().splitlines()] == ["clips/a.mp4", None, "c.mp4"]


def test_a_manifest_named_by_a_relative_path_reads_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    before = read_manifest(jsonl(Path("data"), FULL))
    assert before[0].audio == "data/sound/a.wav"
    assert read_manifest(write_manifest(before, "data/copy.jsonl")) == before


def test_clips_outside_the_folder_of_the_manifest_are_still_found(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    path = write_manifest(corpus(tmp_path), tmp_path / "lists" / "out.jsonl")
    for before, after in zip(corpus(tmp_path), read_manifest(path), strict=True):
        for name in ("audio", "vision"):
            given, found = getattr(before, name), getattr(after, name)
            assert (given is None) == (found is None)
            assert given is None or os.path.normpath(found) == given


def test_a_whole_folder_with_its_manifest_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(corpus(tmp_path / "old"), tmp_path / "old" / "out.jsonl")
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_manifest(tmp_path / "new" / "out.jsonl") == corpus(tmp_path / "new")


def test_an_open_quote_costs_its_own_line_and_no_other(tmp_path: Path) -> None:
    rows = [f'r{i},"quoted {i}"' if i % 3 else f"r{i},plain {i}" for i in range(42)]
    rows[7] = 'r7,"never closed'
    path = tmp_path / "clips.csv"
    path.write_text("id,text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    refused: list[tuple[str, str]] = []
    found = [utterance.id for utterance in stream_manifest(path, refused=refused)]
    assert found == [f"r{i}" for i in range(42) if i != 7]
    assert [where for where, _ in refused] == [f"{path}:9"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(alphabet='ab,"\n\r ', max_size=8), min_size=1, max_size=12))
def test_a_csv_that_was_written_by_the_csv_module_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "clips.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows([f"r{i}", text] for i, text in enumerate(texts))
    refused: list[tuple[str, str]] = []
    with contextlib.suppress(UserError):  # where not one row can be used
        found = {u.id: u.text for u in stream_manifest(path, refused=refused)}
        # Read as written, or said: a text may be empty (no modality), or hold what looks like a row of the file.
        assert all(found[f"r{i}"] == text for i, text in enumerate(texts) if f"r{i}" in found)
        missing = [text for i, text in enumerate(texts) if f"r{i}" not in found]
        assert bool(missing) == bool(refused)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", 1.0), (" -1.5e2 ", -150.0), (".5", 0.5), ("1_000", None), ("٣", None), ("0x10", None), (True, None), ("", None),
     (10**400, float("inf")), ("9" * 400, float("inf")), (np.float32(2), 2.0), (np.bool_(True), None), (None, None)],
)  # fmt: skip
def test_a_number_is_what_people_write_as_one(value: object, expected: float | None) -> None:
    assert parse_number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), ("3.0", 3), (2**63 - 1, 2**63 - 1), (str(2**63 - 1), 2**63 - 1), (2**63, None), (1.5, None), (1e17, None),
     (9007199254740993, 9007199254740993), ("9007199254740993", 9007199254740993), (True, None), (np.int64(4), 4)],
)  # fmt: skip
def test_a_whole_number_is_exact_or_refused(value: object, expected: int | None) -> None:
    assert parse_whole_number(value) == expected


def test_a_number_as_a_name_is_one_name_however_a_table_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    rows = [{"id": 1, "speaker": 7}, {"id": 2.0, "speaker": 7.0}, {"id": 2.5, "speaker": "7.0"}]
    path.write_text("".join(json.dumps({**row, "text": "hello"}) + "\n" for row in rows))
    assert [(u.id, u.speaker) for u in read_manifest(path)] == [("1", "7"), ("2", "7"), ("2.5", "7.0")]
    path.write_text('{"id": 1, "text": "hello"}\n{"id": 1.0, "text": "hello"}\n')
    with pytest.raises(UserError, match="id '1' is already used at"):
        read_manifest(path)


def test_blanks_around_tags_are_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("id,text,tags\na,hello, loud ; fast;\n")
    assert read_manifest(path)[0].tags == ("loud", "fast")
