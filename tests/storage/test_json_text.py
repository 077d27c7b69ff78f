"""JSON comes out as its values; what would be read otherwise than it was meant is refused in one line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_mer.errors import UserError
from llm_mer.storage.json_text import MAX_DIGITS, dump_json, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_every_value_comes_back_as_it_was_written(value: object) -> None:
    assert parse_json(json.dumps(value), "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 1}', "here: key 'a' occurs twice"),
        ('{"x": [{"a": 1, "b": 2, "a": 3}]}', "here: key 'a' occurs twice"),
        ('{"a": NaN}', "here: NaN is not JSON"),
        ('{"a": -Infinity}', "here: -Infinity is not JSON"),
        ('{"a": 1e999}', "here: the number '1e999' is too large"),
        ('{"a": ' + "9" * 400 + "}", f"here: a number of 400 digits; at most {MAX_DIGITS}"),
        ('{"a": ' + "9" * 10_000 + "}", "here: a number of 10000 digits"),
        ("[" * 100_000, "here: brackets are nested too deeply"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "here: brackets are nested too deeply"),
        ('{"a": ', "here: not JSON: .* at column"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_json(text, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_number_that_json_does_not_have_is_null_wherever_it_stands() -> None:
    value = {"a": float("nan"), "b": [1.5, (float("inf"), {"c": -float("inf")})], "d": "NaN", "嗯": True}
    assert json.loads(dump_json(value)) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN", "嗯": True}
    assert "嗯" in dump_json(value, indent=1)
