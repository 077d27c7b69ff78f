"""Fields of an utterance: other kinds of the same value are read, and what would be misread is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError

VALUES = np.array([[0.5, -1.25], [2.0, 3.5]], dtype=np.float32)


@pytest.mark.parametrize(
    "given",
    [
        VALUES.tolist(),
        VALUES.astype(np.float64),
        VALUES.astype(np.float16),
        torch.tensor(VALUES),
        torch.tensor(VALUES).bfloat16().requires_grad_(),
        [torch.tensor(row) for row in VALUES],
    ],
    ids=["lists", "float64", "float16", "tensor", "bfloat16 of a graph", "tensors of steps"],
)
def test_the_same_numbers_in_another_container_are_the_same_features(given: Any) -> None:
    found = Utterance("a", text="hello", audio_features=given).audio_features
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found.astype(np.float32), VALUES)


def test_the_values_of_a_store_are_not_copied() -> None:
    assert Utterance("a", text="hello", audio_features=VALUES).audio_features is VALUES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (VALUES + 0j, "no array of real numbers: its values are of kind complex"),
        (VALUES.astype(str), "no array of real numbers: its values are of kind <U"),
        (VALUES.astype(object), "no array of real numbers: its values are of kind object"),
        (VALUES > 0, "no array of real numbers: its values are of kind bool"),
        ([[1.0, 2.0], [3.0]], "its rows have different lengths"),
        (np.ma.masked_array(VALUES, mask=VALUES > 0), "is a masked array"),
        ("features.npz", "no array of real numbers"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"utterance 'a': vision_features .*{message}"):
        Utterance("a", text="hello", vision_features=given)


def test_numpys_texts_and_numbers_and_lists_of_tags_are_read() -> None:
    labels: Any = {"emotion": np.str_("joy"), "sentiment": np.float32(0.5), "n": np.int64(3)}
    fields: Any = {"id": np.str_("a"), "text": np.str_("hello"), "audio": Path("a.wav"), "dialogue_id": "d"}
    found = Utterance(**fields, turn=np.int64(3), tags=["loud"], labels=labels)  # type: ignore[arg-type]
    kinds = [type(value) for value in (found.id, found.text, found.audio, found.turn, found.tags, *found.labels.values())]
    assert kinds == [str, str, str, int, tuple, str, float, int]
    assert (found.audio, found.turn, found.tags, found.labels["sentiment"]) == ("a.wav", 3, ("loud",), 0.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", "", "id is ''; it must be a text with at least one character"),
        ("id", 3, "id is 3; it must be a text with at least one character"),
        ("text", b"hello", "text is b'hello'; it must be a text"),
        ("text", "half \ud83d", "a lone surrogate is not valid Unicode"),
        ("text", "a\0b", "it contains a NUL character"),
        ("speaker", 7, "speaker is 7; it must be a text"),
        ("dialogue_id", 7, "dialogue_id is 7; it must be a text"),
        ("turn", "10", "turn is '10'; it must be a whole number of at most 64 bits"),  # '10' sorts before '9'
        ("turn", 1.5, "turn is 1.5; it must be a whole number"),
        ("turn", True, "turn is True; it must be a whole number"),
        ("turn", 1 << 63, "turn is 9223372036854775808; it must be a whole number of at most 64 bits"),
        ("tags", "loud", "tags is 'loud'; it must be a list of texts"),  # else a subset for each letter
        ("tags", [1], r"tags is \[1\]; it must be a list of texts"),
        ("tags", ["loud", " "], "tag ' ' is blank"),
        ("tags", ["all"], "tag 'all' is the name of scores over all utterances"),  # its row held every utterance
        ("labels", ["joy"], r"labels is \['joy'\]; it must be a dict"),
        ("labels", {"sentiment": True}, "label 'sentiment' is True; it must be a word or a number"),
        ("labels", {3: "joy"}, "label 3 is 'joy'; it must be a word or a number"),
    ],
)
def test_a_field_of_another_kind_is_refused(field: str, value: Any, message: str) -> None:
    fields: dict[str, Any] = {"id": "a", "text": "hello", **{field: value}}
    with pytest.raises(UserError, match=message):
        Utterance(**fields)
