"""What is fuzzed: each target takes drawn input and fails where anything but a :class:`UserError` comes of it."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_utterances
from hypothesis import strategies as st

from llm_mer.data.sources.manifest import FIELDS, read_manifest
from llm_mer.data.sources.numbers import parse_number, parse_whole_number
from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.prompting.rendering import HistoryTurn, RenderedPrompt, render
from llm_mer.prompting.tasks import NUMBER, builtin_tasks
from llm_mer.prompting.templates import load_prompts, select_prompt
from llm_mer.storage.json_text import parse_json
from llm_mer.storage.yaml_text import parse_yaml


def check_message(error: UserError) -> None:
    """A refusal is one line."""
    assert str(error).strip()
    assert "\n" not in str(error), str(error)


def in_file(name: str, content: bytes, read: Callable[[Path], Any]) -> Any:
    """What reading a file of this content gives; None where it is refused in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read(path)
        except UserError as error:
            check_message(error)
            return None


def mutated(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid content with bytes replaced, put in, or cut off."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        content = bytearray(draw(valid))
        for _ in range(draw(st.integers(0, 4))):
            place = draw(st.integers(0, len(content)))
            piece = draw(st.binary(max_size=4))
            length = draw(st.integers(0, 4))
            content[place : place + length] = piece
        return bytes(content)

    return build()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.sampled_from([*FIELDS, "emotion", "sentiment"]) | st.text(max_size=5), VALUES, max_size=6)
SENSIBLE = st.fixed_dictionaries(
    {"id": st.integers(0, 5) | st.text(min_size=1, max_size=4), "text": st.text(max_size=20), "language": st.just("en")},
    optional={"turn": st.integers() | st.text(max_size=4), "emotion": st.sampled_from(["joy", "anger"]) | VALUES},
)
LINES = st.lists((SENSIBLE | ENTRIES).map(json.dumps) | st.text(max_size=30), max_size=5)
MANIFESTS = mutated(LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")))
CELLS = st.lists(st.lists(st.text('abc",\n\r 1é', max_size=6), min_size=1, max_size=4).map(",".join), max_size=5)
TABLES = mutated(CELLS.map(lambda rows: "\n".join(["id,text,language,emotion", *rows]).encode()))


def manifest(content: bytes, suffix: str = ".jsonl") -> None:
    """A manifest's utterances have ids of their own and finite labels; every other line is refused by file and line."""
    refused: list[tuple[str, str]] = []
    found = in_file(f"m{suffix}", content, lambda path: read_manifest(path, refused=refused)) or []
    assert len({utterance.id for utterance in found}) == len(found)
    for utterance in found:
        assert all(isinstance(v, str) or math.isfinite(v) for v in utterance.labels.values())
    for where, message in refused:
        assert where.rpartition(":")[2].isdigit()
        assert "\n" not in message, message


def table(content: bytes) -> None:
    """The same of a CSV file."""
    manifest(content, ".csv")


NUMBERS = st.from_regex(NUMBER, fullmatch=True) | st.text(max_size=12) | st.integers() | st.floats() | VALUES


def number(value: Any) -> None:
    """A number is what it says, and a whole number has at most 64 bits."""
    found, whole = parse_number(value), parse_whole_number(value)
    assert found is None or isinstance(found, float)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        assert found == float(Decimal(value.strip()))
    if whole is not None:
        assert -(2**63) < whole < 2**63
        assert not isinstance(value, bool)
        assert whole == (Decimal(value.strip()) if isinstance(value, str) else value)


SPECIAL = st.sampled_from(["<|im_end|>", "<|user|>", "[gMASK]", "</s>", "{transcript}", "{", "}", "{0}", "\0", "\ud800"])
WORDS = st.lists(SPECIAL | st.text(max_size=8), max_size=5).map("".join)
PROMPTS = st.tuples(
    st.sampled_from(sorted(builtin_tasks())),
    st.sampled_from(["en", "zh"]),
    st.sampled_from(["short", "context", "instruct"]),
    WORDS,
    WORDS,
    st.lists(WORDS, max_size=2),
)


def prompt(drawn: tuple[str, str, str, str, str, list[str]]) -> None:
    """What was said stands in the prompt as it was said, marked as words and never as structure."""
    name, language, style, text, speaker, history = drawn
    task = builtin_tasks()[name]
    template = select_prompt(load_prompts(style), task, language)
    try:
        found = render(template, task, text, [HistoryTurn(turn, speaker) for turn in history], speaker)
    except UserError:
        return
    whole = found.system + found.before + found.after
    if text and "{transcript}" in template.prefix + template.suffix + template.task + template.system:
        assert text in whole
    plain = render(template, task, "w", [HistoryTurn("w", "w") for _ in history], "w")
    if text and speaker and all(history):
        assert structure(found) == structure(plain)


def structure(rendered: RenderedPrompt) -> list[str]:
    """What of a prompt is the template's own."""
    parts = [getattr(rendered, entry.name) for entry in dataclasses.fields(rendered)]
    return [piece.text for part in parts if isinstance(part, tuple) for piece in part if not piece.quoted]


OBJECTS = st.sampled_from(
    [
        {"a": [1, (2.5, None)], "b": {1, 2}},
        np.arange(6.0).reshape(2, 3),
        np.array(["x", None], dtype=object),
        [np.float32(1.5), b"x", "中", bytearray(b"y")],
    ]
)
PICKLES = mutated(st.tuples(OBJECTS, st.integers(0, 5)).map(lambda drawn: pickle.dumps(drawn[0], drawn[1])))
OPCODES = st.lists(
    st.sampled_from([bytes([code]) for code in b"()]}Nl0.2teuasd\x85\x86\x87\x88\x89\x8f\x90\x91\x94RbQ"])
    | st.binary(min_size=1, max_size=1).map(lambda b: b"K" + b)
    | st.integers(0, 5).map(lambda i: b"h" + bytes([i]))
    | st.sampled_from([b"cbuiltins\nset\n", b"cbuiltins\nbytearray\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"]),
    max_size=60,
).map(lambda codes: b"".join(codes) + b".")


def unpickle(content: bytes) -> None:
    """A pickle is read or refused."""
    in_file("p.pkl", content, load_pickle)


TEXTS = mutated(VALUES.map(lambda value: json.dumps(value).encode())) | st.binary(max_size=60)


def texts(content: bytes) -> None:
    """JSON and YAML are read or refused, and what is read as JSON has numbers only that are finite."""
    text = content.decode("utf-8", "replace")
    for parse in (parse_json, parse_yaml):
        try:
            found = parse(text, "x")
        except UserError as error:
            check_message(error)
            continue
        if parse is parse_json:
            json.dumps(found, allow_nan=False)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _store() -> Path:
    """One store, written once a process."""
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory())
        write_store(make_utterances("train", 6), Path(_FOLDERS[0].name) / "store")
    return Path(_FOLDERS[0].name) / "store"


CHANGES = st.tuples(
    st.integers(0, 9), st.floats(0, 1), st.binary(min_size=1, max_size=4), st.sampled_from(["set", "cut", "add"])
)


def store(change: tuple[int, float, bytes, str]) -> None:
    """A store whose bytes were changed is refused, or reads as it was written."""
    index, share, piece, kind = change
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(_store(), Path(folder) / "store"))
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        path = files[index % len(files)]
        content = bytearray(path.read_bytes())
        place = int(share * len(content))
        if kind == "cut":
            del content[place:]
        else:
            content[place : place + (len(piece) if kind == "set" else 0)] = piece
        path.write_bytes(bytes(content))
        try:
            found = list(UtteranceStore.open(copy).split("train"))
        except UserError as error:
            check_message(error)
            return
    expected = list(UtteranceStore.open(_store()).split("train"))
    assert [(u.id, u.text, u.labels) for u in found] == [(u.id, u.text, u.labels) for u in expected]
    for one, two in zip(found, expected, strict=True):
        assert np.array_equal(one.audio_features, two.audio_features)
        assert np.array_equal(one.vision_features, two.vision_features)


TARGETS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "manifest": (manifest, MANIFESTS),
    "table": (table, TABLES),
    "number": (number, NUMBERS),
    "prompt": (prompt, PROMPTS),
    "pickle": (unpickle, PICKLES | OPCODES | st.binary(max_size=80)),
    "text": (texts, TEXTS),
    "store": (store, CHANGES),
}
