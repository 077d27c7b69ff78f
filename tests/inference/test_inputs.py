"""A line of a stream that cannot be used is answered with what is wrong with it, and the lines after it are read."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig, inputs, known_labels

BROKEN: dict[str, bytes] = {
    "not JSON": b'{"id": ',
    "nested": b'{"id": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    "deep objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "400 digits": b'{"id": "x", "text": "t", "sentiment": ' + b"9" * 400 + b"}",
    "5000 digits": b'{"id": "x", "text": "t", "turn": ' + b"9" * 5000 + b"}",
    "a turn beyond 64 bits": b'{"id": "x", "text": "t", "turn": 9223372036854775808}',
    "an infinite turn": b'{"id": "x", "text": "t", "turn": Infinity}',
    "a key twice": b'{"id": "x", "text": "t", "text": "u"}',
    "not UTF-8": b'{"id": "x", "text": "\xff\xfe"}',
    "20 000 fields": json.dumps({"id": "x", "text": "t", **{f"f{i}": 1 for i in range(20_000)}}).encode(),
    "half a character": b'{"id": "x", "text": "\\ud83d"}',
}


class Stdin(io.StringIO):
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.buffer = io.BytesIO(content)


def stream(monkeypatch: pytest.MonkeyPatch, content: bytes, **options: str) -> Iterator[Utterance | tuple[str, str]]:
    monkeypatch.setattr("sys.stdin", Stdin(content))
    return inputs(InferConfig(stdin=True, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_of_a_stream_is_one_line_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    good = b'{"id": "%s", "text": "hello"}\n'
    before, broken, after = stream(monkeypatch, good % b"a" + BROKEN[name] + b"\n" + good % b"b")
    assert isinstance(before, Utterance)
    assert isinstance(after, Utterance)
    assert (before.id, after.id) == ("a", "b")
    assert isinstance(broken, tuple)
    where, message = broken
    assert where == "standard input:2"
    assert message.startswith("standard input:2: ")
    assert "\n" not in message
    assert len(message) < 600


def test_a_broken_line_stops_a_stream_that_is_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="standard input:1: not JSON"):
        list(stream(monkeypatch, BROKEN["not JSON"], on_bad_input="stop"))


BROKEN_ROWS: dict[str, str] = {
    "an unclosed quote": 'x,"hello,,',
    "400 digits": f"x,hello,{'9' * 400},",
    "a turn beyond 64 bits": "x,hello,,9223372036854775808",
    "20 000 cells": "x,hello" + "," * 20_000,
    "a cell of 200 000 characters": f"x,{'a' * 200_000},,",
    "a line of 17 000 000 characters": f"x,{'a' * 17_000_000},,",
    "another label kind": "x,hello,nan,",
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_broken_row_of_a_table_is_one_line_and_the_next_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"id,text,sentiment,turn\na,hello,,\n{BROKEN_ROWS[name]}\nb,hello,,\nc,hello,,\n")
    before, broken, *after = inputs(InferConfig(manifest=str(path)))
    assert isinstance(before, Utterance)
    assert [u.id for u in after if isinstance(u, Utterance)] == ["b", "c"]
    assert isinstance(broken, tuple)
    where, message = broken
    assert where == f"{path}:3"
    assert message.startswith(f"{path}:3: ")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_of_a_manifest_is_one_line_and_the_next_is_read(tmp_path: Path, name: str) -> None:
    path, good = tmp_path / "m.jsonl", b'{"id": "%s", "text": "hello"}\n'
    path.write_bytes(good % b"a" + BROKEN[name] + b"\n" + good % b"b")
    before, broken, after = inputs(InferConfig(manifest=str(path)))
    assert isinstance(before, Utterance)
    assert isinstance(after, Utterance)
    assert isinstance(broken, tuple)
    assert broken[0] == f"{path}:2"


def test_a_manifest_of_broken_lines_alone_says_what_is_wrong_with_each(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("broken\nbroken too\n")
    assert [entry[0] for entry in inputs(InferConfig(manifest=str(path))) if isinstance(entry, tuple)] == [
        f"{path}:1",
        f"{path}:2",
    ]
    path.write_text("")
    with pytest.raises(UserError, match="the manifest is empty"):
        list(inputs(InferConfig(manifest=str(path))))


def test_targets_of_ones_own_are_read_where_the_checkpoint_or_the_command_line_names_them(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "hello", "arousal": 3, "dominance": 2}\n')
    (tmp_path / "llm_mer.json").write_text(
        json.dumps(
            {"processor": {"tasks": {"how much": {"target": "arousal"}}}, "data": {"labels": ["emotion", "dominance"]}}
        )
    )
    (known,) = inputs(InferConfig(manifest=str(path)), known_labels(tmp_path))
    assert isinstance(known, Utterance)
    assert known.labels == {"arousal": 3.0, "dominance": 2.0}
    (named,) = inputs(InferConfig(manifest=str(path), labels=["arousal", "dominance"]))
    assert isinstance(named, Utterance)
    (refused,) = inputs(InferConfig(manifest=str(path)))
    assert isinstance(refused, tuple)
    assert "unknown fields ['arousal', 'dominance']" in refused[1]
    assert known_labels(tmp_path / "nowhere") == []
