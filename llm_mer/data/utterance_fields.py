"""The kinds of values that the fields of an utterance hold; a word as turn, or tags in one text, would be misread.

Names (ids, dialogues, speakers, targets, labels, tags) are composed (NFC) here, which every utterance goes through wherever
it comes from. A transcript stays as it is: its letters are what a tokenizer reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.quoting import quote

TEXTS = ("id", "text", "audio", "vision", "dialogue_id", "speaker")
NAMES = ("id", "dialogue_id", "speaker")
FEATURES = ("text_features", "audio_features", "vision_features")
MOST_TURN = 1 << 63
EVERYTHING = "all"
"""The name of scores over the whole of a split, beside those of its tags."""


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an utterance, each of the kind it is read as; numpy's texts and numbers, lists and paths become so.

    Raises:
        UserError: naming the utterance, the field, what was found and what would be right.
    """
    where = f"utterance {quote(fields['id'])}"
    if not isinstance(fields["id"], str) or not fields["id"]:
        raise UserError(f"{where}: id is {quote(fields['id'])}; it must be a text with at least one character")
    found = dict(fields)
    for name in ("audio", "vision"):
        if isinstance(fields[name], PurePath):
            found[name] = str(fields[name])
    for name in TEXTS:
        found[name] = _read_text(found[name], name, where)
    for name in NAMES:
        found[name] = None if found[name] is None else compose(found[name])
    for name in FEATURES:
        if fields[name] is not None:
            found[name] = as_features(fields[name], f"{where}: {name}")
    found["turn"] = _read_turn(fields["turn"], where)
    found["tags"] = _read_tags(fields["tags"], where)
    found["labels"] = _read_labels(fields["labels"], where)
    return found


def as_features(value: Any, where: str) -> np.ndarray:
    """Feature values as an array of real numbers: an array, nested lists, or a torch tensor wherever it lies.

    Raises:
        UserError: other kinds of values, a masked array (whose mask nobody would look at), or rows of different length.
    """
    if type(value) is np.ndarray and value.dtype == np.float32:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{where} is a masked array; take the steps that are missing out")
    if hasattr(value, "detach"):  # torch's: perhaps on an accelerator, in bfloat16, or part of a graph
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    try:
        found = np.asarray(value)
    except ValueError:
        raise UserError(f"{where} is no array of numbers: its rows have different lengths") from None
    if found.dtype.kind not in "fiu":
        raise UserError(f"{where} is no array of real numbers: its values are of kind {found.dtype}")
    return found


def _read_text(value: Any, name: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {quote(value)}; it must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name} is {quote(value)}: half a surrogate pair is not valid Unicode") from None
    if "\0" in value:
        raise UserError(f"{where}: {name} is {quote(value)}: a NUL is no text")
    return str(value)


def _read_turn(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -MOST_TURN <= int(value) < MOST_TURN:
        raise UserError(f"{where}: turn is {quote(value)}; it must be a whole number of at most 64 bits")
    return int(value)


def _read_tags(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) for tag in value):
        raise UserError(f"{where}: tags is {quote(value)}; it must be a list of texts")
    for tag in value:
        if not tag.strip() or not tag.isprintable():
            raise UserError(f"{where}: tag {quote(tag)} is blank, or holds a character with no glyph")
        if tag == EVERYTHING:
            raise UserError(f"{where}: tag {tag!r} is what scores over all utterances are called; name it otherwise")
    return tuple(map(compose, value))


def _read_labels(value: Any, where: str) -> dict[str, str | float]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: labels is {quote(value)}; it must be a dict, e.g. {{'emotion': 'joy'}}")
    found = {compose(str(name)): _read_label(label, name, where) for name, label in value.items()}
    if len(found) < len(value):
        raise UserError(f"{where}: labels has a target twice, in two Unicode forms: {quote(list(value))}")
    return found


def compose_labels(labels: Mapping[str, str | float]) -> dict[str, str | float]:
    """Labels as a store holds them, with their names composed, as those of an utterance are."""
    return {compose(name): compose(value) if isinstance(value, str) else value for name, value in labels.items()}


def _read_label(value: Any, name: Any, where: str) -> str | float:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: label {quote(name)} is {quote(value)}; it must be a word or a number")
    return compose(value) if isinstance(value, str) else value
