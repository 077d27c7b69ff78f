"""One rule for names in two Unicode forms, wherever an utterance comes from: they are composed, transcripts are not."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import read_manifest, write_manifest
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.inference.clips import utterance_from_fields
from llm_mer.inference.inputs import InferConfig, inputs
from llm_mer.prompting.tasks import Task

NAME = "José"
APART = unicodedata.normalize("NFD", NAME)
TEXT = unicodedata.normalize("NFD", "the café is open")
FIELDS = {"id": APART, "text": TEXT, "dialogue_id": APART, "turn": 0, "speaker": APART, "tags": [APART]}
LINE = {**FIELDS, "language": "en", "emotion": APART, "votes": {"emotion": {APART: 2}}}

Door = Callable[[Path, pytest.MonkeyPatch], Utterance]


def from_jsonl(folder: Path, _: pytest.MonkeyPatch) -> Utterance:
    path = folder / "clips.jsonl"
    path.write_text(json.dumps(LINE, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_manifest(path)[0]


def from_csv(folder: Path, _: pytest.MonkeyPatch) -> Utterance:
    path = folder / "clips.csv"
    votes = json.dumps(LINE["votes"], ensure_ascii=False).replace('"', '""')
    row = ",".join([APART, TEXT, APART, "0", APART, APART, "en", APART, f'"{votes}"'])
    path.write_text(f"id,text,dialogue_id,turn,speaker,tags,language,emotion,votes\n{row}\n", encoding="utf-8")
    return read_manifest(path)[0]


def from_stdin(_: Path, patch: pytest.MonkeyPatch) -> Utterance:
    patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((json.dumps(LINE, ensure_ascii=False) + "\n").encode())))
    (found,) = inputs(InferConfig("unread", stdin=True))
    assert isinstance(found, Utterance)
    return found


def from_fields(_: Path, __: pytest.MonkeyPatch) -> Utterance:
    given = {**FIELDS, "tags": (APART,), "language": "en", "labels": {"emotion": APART}}
    found = utterance_from_fields(given)
    found.votes = Utterance("x", text="x", votes={"emotion": Votes({APART: 2})}).votes
    return found


def in_python(_: Path, __: pytest.MonkeyPatch) -> Utterance:
    votes = {"emotion": Votes({APART: 2})}
    return Utterance(**{**FIELDS, "tags": (APART,)}, language="en", labels={"emotion": APART}, votes=votes)  # type: ignore[arg-type]


def from_store(folder: Path, patch: pytest.MonkeyPatch) -> Utterance:
    return UtteranceStore.open(write_store([in_python(folder, patch)], folder / "store")).split("train")[0]


@pytest.mark.parametrize("door", [from_jsonl, from_csv, from_stdin, from_fields, in_python, from_store])
def test_names_are_composed_at_every_door_and_the_transcript_stays_as_it_is(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert APART != NAME
    found = door(tmp_path, monkeypatch)
    assert (found.id, found.dialogue_id, found.speaker, found.tags) == (NAME, NAME, NAME, (NAME,))
    assert found.labels == {"emotion": NAME}
    assert found.votes["emotion"].counts == {NAME: 2}
    assert found.text == TEXT


def test_one_id_in_two_forms_is_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": "hello"}) + "\n" for name in (NAME, APART)))
    with pytest.raises(UserError, match=r":2: id 'José' is already used at .*:1"):
        read_manifest(path)


def test_a_target_or_label_in_two_forms_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels has a target twice, in two Unicode forms"):
        Utterance("a", text="hello", labels={NAME: "x", APART: "y"})
    with pytest.raises(UserError, match="names a label in two Unicode forms; write it once"):
        Utterance("a", text="hello", votes={"emotion": Votes({NAME: 1, APART: 2})})
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "hello", NAME: "x", APART: "y"}) + "\n")
    with pytest.raises(UserError, match="a field occurs twice, in two Unicode forms"):
        read_manifest(path, [NAME])


def test_a_task_and_its_data_meet_whatever_the_form_of_either(tmp_path: Path) -> None:
    task = Task.from_dict(
        APART,
        {
            "kind": "classification",
            "target": f"é{APART}",
            "labels": [{"name": APART, "en": APART}, {"name": "other", "en": "other"}],
            "aliases": {f"{APART}2": APART},
            "ignored": [f"{APART}3"],
        },
    )
    for name in (NAME, APART, f"{NAME}2"):
        assert task.class_index(name) == 0
    assert task.ignores(f"{NAME}3")
    assert task.words("en")[0] == APART, "words are what the model reads and writes"
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "hello", f"é{APART}": APART}) + "\n")
    for columns in ([f"é{NAME}"], [f"é{APART}"]):
        utterances = read_manifest(path, columns)
        assert [q.truth for q in MerDataset(utterances, [task]).questions] == [NAME]


def test_a_store_of_decomposed_names_is_read_composed_in_its_columns_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(name: str) -> str:
        return name

    with monkeypatch.context() as patch:
        for module in ("utterance_fields", "votes"):
            patch.setattr(f"llm_mer.data.{module}.compose", kept)
        folder = write_store([Utterance(APART, text="hello", labels={"emotion": APART})], tmp_path / "store")
    table = UtteranceStore.open(folder).split("train")
    assert APART.encode() in (folder / "train.arrow").read_bytes()
    assert (table.column("id"), table.column("labels")) == ([NAME], [{"emotion": NAME}])
    assert (table[0].id, table[0].labels) == (NAME, {"emotion": NAME})


def test_a_manifest_that_is_written_says_what_was_read(tmp_path: Path) -> None:
    path = write_manifest([Utterance(APART, text=TEXT, language="en", speaker=APART)], tmp_path / "clips.jsonl")
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert (entry["id"], entry["speaker"], entry["text"]) == (NAME, NAME, TEXT)
