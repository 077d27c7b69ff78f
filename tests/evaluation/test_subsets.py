"""Parts of a split: bins of length and turn, at their edges, in both languages."""

from __future__ import annotations

import pytest

from llm_mer.errors import UserError
from llm_mer.evaluation.subsets import check_groupings, length_group, subset_names, subsets_of, turn_group
from llm_mer.inference.prediction import Prediction


def answer(language: str = "en", **fields: object) -> Prediction:
    return Prediction("u", "emotion", language, "joy", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "name"),
    [
        (1, "length 1-5 words"),
        (5, "length 1-5 words"),
        (6, "length 6-10 words"),
        (20, "length 11-20 words"),
        (21, "length 21-40 words"),
        (41, "length 41+ words"),
        (0, "no transcript"),
        (None, "no transcript"),
    ],
)
def test_a_length_falls_into_its_bin_at_both_edges(length: int | None, name: str) -> None:
    assert length_group(answer(length=length)) == name
    assert length_group(answer("zh", length=length)) == name.replace("words", "characters")


@pytest.mark.parametrize(
    ("position", "name"),
    [(1, "turn 1"), (2, "turns 2-4"), (4, "turns 2-4"), (5, "turns 5-9"), (9, "turns 5-9"), (10, "turns 10+"), (None, None)],
)
def test_a_place_in_a_conversation_falls_into_its_bin_at_both_edges(position: int | None, name: str | None) -> None:
    assert turn_group(answer(position=position)) == name


def test_subsets_stand_from_low_to_high_and_english_before_chinese() -> None:
    rows = [answer(length=n, position=p) for n, p in ((30, 11), (1, 1), (7, 2))] + [
        answer("zh", length=2),
        answer(length=None),
    ]
    rows[0].tags = ("b", "a")
    assert subsets_of(rows) == [("tag", "a"), ("tag", "b")]
    assert [name for by, name in subsets_of(rows, ["length", "turn"]) if by != "tag"] == [
        "no transcript",
        "length 1-5 words",
        "length 6-10 words",
        "length 21-40 words",
        "length 1-5 characters",
        "turn 1",
        "turns 2-4",
        "turns 10+",
    ]
    assert subset_names(rows[0], "tag") == ("b", "a")
    assert subset_names(rows[3], "turn") == ()


def test_another_grouping_is_refused() -> None:
    with pytest.raises(UserError, match="--by 'speaker'; choose from length, turn"):
        check_groupings(["turn", "speaker"])
