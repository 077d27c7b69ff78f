"""Checking the types of an utterance's fields; a word as turn, or tags in one string, would be misread.

Names (ids, dialogues, speakers, targets, labels, tags) are composed (NFC) here, for utterances from any source. A transcript
is not changed: its characters are what a tokenizer reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from llm_mer.data.flags import FLAGS
from llm_mer.errors import UserError
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.quoting import quote

TEXTS = ("id", "text", "audio", "vision", "dialogue_id", "speaker")
NAMES = ("id", "dialogue_id", "speaker")
FEATURES = ("text_features", "audio_features", "vision_features")
TURN_LIMIT = 1 << 63
EVERYTHING = "all"
"""Name of the scores over a whole split, next to those of its tags."""


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of an utterance and convert numpy strings and numbers, lists and paths to the expected types.

    Raises:
        UserError: naming the utterance, the field, the value found and valid values.
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
    found["flags"] = _read_flags(fields["flags"], where)
    found["labels"] = _read_labels(fields["labels"], where)
    return found


def as_features(value: Any, where: str) -> np.ndarray:
    """Feature values as an array of real numbers: an array, nested lists, or a torch tensor on any device.

    Raises:
        UserError: other types of values, a masked array (whose mask would be ignored), or rows of different lengths.
    """
    if type(value) is np.ndarray and value.dtype == np.float32:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{where} is a masked array; remove the missing steps")
    if hasattr(value, "detach"):  # a torch tensor: may be on an accelerator, in bfloat16, or part of a graph
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
        raise UserError(f"{where}: {name} is {quote(value)}: a lone surrogate is not valid Unicode") from None
    if "\0" in value:
        raise UserError(f"{where}: {name} is {quote(value)}: it contains a NUL character")
    return str(value)


def _read_turn(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -TURN_LIMIT <= int(value) < TURN_LIMIT:
        raise UserError(f"{where}: turn is {quote(value)}; it must be a whole number of at most 64 bits")
    return int(value)


def _read_tags(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(tag, str) for tag in value):
        raise UserError(f"{where}: tags is {quote(value)}; it must be a list of texts")
    for tag in value:
        if not tag.strip() or not tag.isprintable():
            raise UserError(f"{where}: tag {quote(tag)} is blank, or contains a character without a glyph")
        if tag == EVERYTHING:
            raise UserError(f"{where}: tag {tag!r} is the name of scores over all utterances; choose another one")
    return tuple(map(compose, value))


def _read_flags(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(flag in FLAGS for flag in value):
        raise UserError(f"{where}: flags is {quote(value)}; it must be a list of any of {', '.join(FLAGS)}")
    return tuple(value)


def _read_labels(value: Any, where: str) -> dict[str, str | float]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: labels is {quote(value)}; it must be a dict, e.g. {{'emotion': 'joy'}}")
    found = {compose(str(name)): _read_label(label, name, where) for name, label in value.items()}
    if len(found) < len(value):
        raise UserError(f"{where}: labels has a target twice, in two Unicode forms: {quote(list(value))}")
    return found


def compose_labels(labels: Mapping[str, str | float]) -> dict[str, str | float]:
    """Labels of a store with names composed like those of an utterance."""
    return {compose(name): compose(value) if isinstance(value, str) else value for name, value in labels.items()}


def _read_label(value: Any, name: Any, where: str) -> str | float:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: label {quote(name)} is {quote(value)}; it must be a word or a number")
    return compose(value) if isinstance(value, str) else value
