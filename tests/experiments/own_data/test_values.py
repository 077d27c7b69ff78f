"""What a column is, is told by rules of its values; what can be read in two ways is refused with the option that decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mer.errors import UserError
from llm_mer.experiments.own_data.table import Cell
from llm_mer.experiments.own_data.values import Classes, Neither, Scores, as_scores, classify_column, widen


def cells(values: Sequence[Any]) -> list[Cell]:
    return [Cell(f"clips.csv:{line}", value) for line, value in enumerate(values, start=2)]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["calm", "tense", "bored"] * 4, Classes({"calm": 4, "tense": 4, "bored": 4})),
        ([" calm", "tense "] * 3, Classes({"calm": 3, "tense": 3})),
        (["yes", "no"] * 3, Classes({"yes": 3, "no": 3})),
        (["平静", "紧张"] * 3, Classes({"平静": 3, "紧张": 3})),
        (["1st", "2nd"] * 3, Classes({"1st": 3, "2nd": 3})),
        (["0.5", "12", "88.25", "3"] * 3, Scores(0.0, 100.0, 0, (0.5, 88.25))),
        ([0.1, 0.25, 0.9], Scores(0.0, 1.0, 2, (0.1, 0.9))),
        (["-2.2", "1.4", "0.0"], Scores(-3.0, 3.0, 1, (-2.2, 1.4))),
        ([str(n * 7) for n in range(14)], Scores(0.0, 100.0, 0, (0.0, 91.0))),
        (["0.001", "0.002"], Scores(0.0, 0.002, 3, (0.001, 0.002))),
        ([str(n) for n in range(1, 13)], Neither("it numbers the rows from 1 to 12")),
        (["same"] * 5, Neither("every row says 'same'")),
        (["7"] * 5, Neither("every row says 7")),
        ([f"take {n}" for n in range(9)], Neither("9 different texts in 9 rows")),
        (["a", "a", "b", "c"], Neither("3 different texts in 4 rows")),
        (["word " * 20, "b", "b", "b"], Neither("texts too long to be labels")),
    ],
)
def test_a_column_is_scores_labels_or_neither(values: Sequence[Any], found: object) -> None:
    assert classify_column("x", cells(values)) == found


@pytest.mark.parametrize(
    ("values", "line", "message"),
    [
        (["1", "2", "5", "3"], 2, "has the numbers 1, 2, 3, 5: scores, or numbered classes.* --range x=0:5 .* --classes x"),
        (["0", "1", "1"], 2, "has the numbers 0, 1: scores, or numbered classes"),
        (["3.5", "4,5"], 3, "is '4,5'; a decimal comma is not read: write 4.5"),
        (["1,234", "2,468"], 2, "is '1,234'; a comma is not read: write 1234 if it parts thousands, 1.234 if decimals"),
        (["70%", "80%"], 2, "is '70%'; write 70 without the sign"),
        (["1.5", "2.5", "good"], 4, "is 'good', and a number in 2 of 3 rows; .* or say --classes x"),
        (["1.5", "n/a"], 3, "is 'n/a'; leave the cell empty where it is not known"),
        (["calm", "?", "calm"], 3, r"is '\?'; leave the cell empty"),
        (["1.5", "nan"], 3, "is 'nan'; leave the cell empty"),
        (["1.5", "1e999"], 3, "is '1e999'; a number is written with a point"),
        (["Calm", "tense", "calm", "tense"] * 3, 4, "is 'calm', and 'Calm' at clips.csv:2: one label in two spellings"),
        (
            ["joy;anger", "joy", "anger", "fear;joy"] * 3,
            2,
            r"is 'joy;anger', several labels; .* not supported\): make a column",
        ),
        ([["joy"], ["anger"]], 2, r"is \['joy'\]; a task has one label or number a clip"),
        ([True, False], 2, "is True; a task has one label or number a clip"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_by_row_and_column(values: Sequence[Any], line: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        classify_column("x", cells(values))
    assert str(caught.value).startswith(f"clips.csv:{line}: column 'x' ")


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3)), min_size=1, max_size=20))
def test_the_range_holds_every_number_and_is_round(numbers: list[float]) -> None:
    low, high = widen(min(numbers), max(numbers))
    assert low <= min(numbers)
    assert high >= max(numbers)
    assert low in (0.0, -high)
    digits = f"{high:e}".partition("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "3", "5")
    found = as_scores("x", cells(numbers))
    assert round((found.high - found.low) * 10**found.decimals) <= 200 or found.decimals == 0


def test_a_range_that_is_given_is_kept_and_a_value_outside_it_is_named() -> None:
    assert as_scores("x", cells(["1", "4"]), (1, 7)) == Scores(1, 7, 0, (1.0, 4.0))
    with pytest.raises(UserError, match=r"clips\.csv:3: column 'x' is '8', outside --range x=1:7"):
        as_scores("x", cells(["1", "8"]), (1, 7))
