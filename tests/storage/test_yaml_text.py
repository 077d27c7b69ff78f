"""YAML comes out as plain values; what would be read otherwise than it was meant, or grow without bound, is refused."""

import pytest
import yaml

from llm_mer.errors import UserError
from llm_mer.storage.yaml_text import MAX_LEVELS, parse_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "- 1\n- [a, {b: c}]",
        "a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2}",
        "a: no",
        "a: 1e3",
        "中: 文",
        "? [a, b]\n: c",
    ],
)
def test_ordinary_yaml_is_read_as_the_safe_loader_reads_it(text: str) -> None:
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        with pytest.raises(UserError):
            parse_yaml(text, "here")
        return
    assert parse_yaml(text, "here") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here: line 3: key 'a' occurs twice"),
        ("x: {b: 2, b: 2}", "here: line 1: key 'b' occurs twice"),
        (LAUGHS, "here: line 5: aliases expand it to more than 100000 values"),
        ("a: &a [*a]", "here: line 1: an alias refers to a node that contains it"),
        ("[" * 5000, "here: "),
        ("[" * (MAX_LEVELS + 1) + "]" * (MAX_LEVELS + 1), f"nested deeper than {MAX_LEVELS} levels"),
        ("a: !!python/object/apply:os.system [ls]", "here: not YAML: .*could not determine a constructor"),
        ("a: 2020-13-45", "here: not YAML"),
        ("a: " + "9" * 5000, "here: not YAML"),
        ("a: b: c", "here: not YAML"),
        ("a: 1\n---\nb: 2", "here: not YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text, "here")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
