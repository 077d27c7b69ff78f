"""Whatever is wrong with a JSON file is one line that names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_mer.errors import UserError
from llm_mer.storage.json_files import read_json, read_json_object


def test_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"a": ["é", 1.5, null]}', encoding="utf-8")
    for read in (read_json, read_json_object):
        assert read(path) == {"a": ["é", 1.5, None]}


CASES: list[tuple[Callable[..., Any], bytes, str]] = [
    (read_json, b"", "damaged or cut off, not JSON"),
    (read_json, b'{"a": ', "damaged or cut off, not JSON"),
    (read_json, b'"\xff"', "damaged or cut off, not JSON"),
    (read_json, b"[" * 100_000, "nested too deeply"),
    (read_json_object, b"[]", "holds list instead of an object"),
]


@pytest.mark.parametrize(("read", "content", "message"), CASES)
def test_a_file_that_cannot_be_read_is_named_in_one_line(
    read: Callable[..., Any], content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json, read_json_object])
def test_a_missing_file_has_the_message_of_the_caller(read: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match=r"^write it first$"):
        read(tmp_path / "none", "write it first")
