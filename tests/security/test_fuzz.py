"""A short run of what ``make fuzz`` does at length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_mer.data.sources.numbers import parse_whole_number

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import run_target
from fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_one_line_comes_of_odd_input(name: str) -> None:
    run_target(name, number=0, examples=60)


def test_a_target_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RecursionError

    monkeypatch.setitem(TARGETS, "number", (fail, TARGETS["number"][1]))
    with pytest.raises(RecursionError):
        run_target("number", number=0, examples=5)


@pytest.mark.parametrize("text", ["1E-400", "0.99999999999999999999", "3.00000000000000000001"])
def test_a_number_that_only_its_float_makes_whole_is_none(text: str) -> None:
    """Found by the target ``number``."""
    assert parse_whole_number(text) is None
    assert parse_whole_number("3.0") == parse_whole_number("3e0") == 3


def test_a_control_character_that_counts_as_white_space_does_not_end_the_reading() -> None:
    """Found by the target ``manifest``: ``int`` does not strip U+001F."""
    assert parse_whole_number("0\x1f") == 0
