"""What the page says of an error names no place of the machine it runs on."""

from __future__ import annotations

import errno

import pytest

from llm_mer.cli.serving.messages import message_of, without_paths
from llm_mer.errors import UserError

UPLOAD = "/tmp/llm-mer-demo-x/ab/my clip.mp4"
NAMES = {UPLOAD: "the video", "/home/jane": "~", "/home/jane/my runs/egmf": "egmf"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"{UPLOAD}: it has no audio track", "the video: it has no audio track"),
        (f"not media ('{UPLOAD}' returned 22)", "not media ('the video' returned 22)"),
        ("/home/jane/my runs/egmf/backbone: no weights", "egmf/backbone: no weights"),
        ("/opt/models/llama/config.json: not JSON", "config.json: not JSON"),
        ("read '/var/a-b/c_d.bin', 3 of 4", "read 'c_d.bin', 3 of 4"),
        ("see http://example.org/a/b and file:/a/b", "see http://example.org/a/b and file:b"),
        ("1/2 of 3/4, en/zh and <|/s|> stay", "1/2 of 3/4, en/zh and <|/s|> stay"),
    ],
)
def test_places_are_called_by_their_names_or_their_last_part(message: str, shown: str) -> None:
    assert without_paths(message, NAMES) == shown
    assert message_of(UserError(message), NAMES) == shown


def test_a_failure_of_the_machine_is_a_line_and_a_defect_is_none() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/home/jane/cache/x.bin")
    assert (
        message_of(full, NAMES)
        == "~/cache/x.bin: No space left on device; make room on its disk, and the same command can be run again"
    )
    assert "memory is exhausted" in str(message_of(MemoryError("no room"), NAMES))
    assert message_of(KeyError("/home/jane"), NAMES) is None


def test_a_message_is_one_line() -> None:
    assert message_of(UserError("a\n  b"), {}) == "a b"
