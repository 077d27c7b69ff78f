"""A line of a stream that cannot be used is answered with what is wrong with it, and the lines after it are read."""

import io
import json
from collections.abc import Iterator

import pytest

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig, inputs

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
