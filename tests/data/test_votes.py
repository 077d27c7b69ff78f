"""Annotators' votes: what they say of a task's labels, what is refused, and their way through manifest and store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import read_utterances
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import read_manifest, write_manifest
from llm_mer.data.store import STORE_FILE, UtteranceStore, write_store
from llm_mer.data.validation.checks import Inspection
from llm_mer.data.validation.validate import check_utterances
from llm_mer.data.votes import Votes, known_answer, votes_of_task
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

EMOTION = get_task("emotion")


def voted(name: str, counts: dict[str, int], annotators: int | None = None, **fields: Any) -> Utterance:
    return Utterance(name, language="en", text=name, votes={"emotion": Votes(counts, annotators)}, **fields)


CLEAR, TIE = {"joy": 2, "neutral": 1}, {"joy": 1, "anger": 1, "neutral": 1}


# --- what votes say ---------------------------------------------------------------------------------------------------


def test_shares_are_counts_over_their_sum_in_the_order_of_the_task() -> None:
    found = votes_of_task(EMOTION, Votes({"joy": 2, "neutral": 1}), "u")
    assert found is not None
    assert found.counts == (1, 2, 0, 0, 0, 0)
    np.testing.assert_array_equal(found.shares, np.array([1, 2, 0, 0, 0, 0]) / 3)
    assert (found.annotators, found.exclusive, found.first) == (3, True, (1,))


def test_annotators_who_name_several_labels_are_fewer_than_their_votes() -> None:
    found = votes_of_task(EMOTION, Votes({"joy": 3, "surprise": 2}, 3), "u")
    assert found is not None
    assert (found.annotators, found.exclusive) == (3, False)
    assert found.shares.sum() == 1


def test_ignored_labels_are_left_out_and_aliases_are_counted_together() -> None:
    found = votes_of_task(get_task("iemocap4"), Votes({"excited": 1, "happy": 1, "xxx": 3}), "u")
    assert found is not None
    assert found.counts == (0, 2, 0, 0)
    assert found.annotators == 2
    assert votes_of_task(get_task("iemocap4"), Votes({"xxx": 3}), "u") is None
    with pytest.raises(UserError, match="'happy' has 4 votes of 3 annotators in several spellings"):
        votes_of_task(get_task("iemocap4"), Votes({"excited": 2, "happy": 2}, 3), "u")


def test_the_majority_is_the_truth_a_tie_has_none_and_a_label_among_the_first_decides_it() -> None:
    votes = {"emotion": Votes(CLEAR)}
    assert known_answer(EMOTION, {}, votes, "u").truth == "joy"
    assert known_answer(EMOTION, {"emotion": "高兴"}, votes, "u").truth == "joy"
    tie = known_answer(EMOTION, {}, {"emotion": Votes(TIE)}, "u")
    assert tie.truth is None
    assert tie.votes is not None
    assert known_answer(EMOTION, {"emotion": "anger"}, {"emotion": Votes(TIE)}, "u").truth == "anger"
    ignored = known_answer(get_task("iemocap4"), {"emotion": "xxx"}, {"emotion": Votes({"happy": 3})}, "u")
    assert (ignored.truth, ignored.votes) == (None, None)


def test_a_label_that_most_did_not_vote_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"u: label 'anger' of 'emotion' has 0 votes, the most has joy \(2\)"):
        known_answer(EMOTION, {"emotion": "anger"}, {"emotion": Votes(CLEAR)}, "u")


def test_unknown_labels_and_tasks_of_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="u: votes: label 'boredom' is not in task 'emotion'"):
        votes_of_task(EMOTION, Votes({"boredom": 1}), "u")
    with pytest.raises(UserError, match="task 'sentiment' asks for a number, and votes are for labels"):
        known_answer(get_task("sentiment"), {"sentiment": 1.0}, {"sentiment": Votes({"joy": 1})}, "u")


@pytest.mark.parametrize(
    ("counts", "annotators", "message"),
    [
        ({"joy": -1}, None, "'joy' has -1 votes"),
        ({"joy": 0.6667}, None, r"'joy' has 0\.6667 votes; they must be a whole number"),
        ({"joy": True}, None, "'joy' has True votes"),
        ({"joy": 0, "anger": 0}, None, "are all 0"),
        ({}, None, "are all 0"),
        ([1, 2], None, "must be a mapping of labels to counts"),
        ({"joy": 4}, 3, "'joy' has 4 votes of 3 annotators"),
        ({"joy": 1}, 0, "annotators is 0"),
    ],
)
def test_what_are_no_counts_is_refused_by_utterance_and_target(counts: Any, annotators: int | None, message: str) -> None:
    with pytest.raises(UserError, match=rf"utterance 'a': votes of 'emotion'.*{message}"):
        voted("a", counts, annotators)


def test_plain_counts_are_votes_names_are_composed_and_what_is_no_mapping_is_refused() -> None:
    found = Utterance("a", language="en", text="a", votes={"e\u0301motion": {"joie\u0301": 2}})  # type: ignore[dict-item]
    assert found.votes == {"\xe9motion": Votes({"joi\xe9": 2})}
    with pytest.raises(UserError, match=r"utterance 'a': votes of 'emotion': .* names a label in two Unicode forms"):
        voted("a", {"joie\u0301": 2, "joi\xe9": 1})
    with pytest.raises(UserError, match=r"utterance 'a': votes are \[1\]; they must be a mapping of targets to votes"):
        Utterance("a", language="en", text="a", votes=[1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="utterance 'a': votes of 'emotion' are 3; they must be a mapping of labels"):
        Utterance("a", language="en", text="a", votes={"emotion": 3})  # type: ignore[dict-item]


# --- manifest, store, questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("annotators", [None, 3])
def test_votes_come_through_manifest_and_store_as_they_are(tmp_path: Path, annotators: int | None) -> None:
    given = [voted("a", CLEAR, annotators, split="train"), Utterance("b", split="train", language="en", text="b")]
    read = read_manifest(write_manifest(given, tmp_path / "clips.jsonl"))
    assert read == given
    table = UtteranceStore.open(write_store(read, tmp_path / "store")).split("train")
    assert list(table) == given
    assert table.column("votes") == [given[0].votes, {}]


def test_votes_of_a_csv_are_json_in_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text('id,text,votes,annotators\na,hello,"{""emotion"": {""joy"": 2, ""anger"": 2}}",3\n', encoding="utf-8")
    (found,) = read_manifest(path)
    assert found.votes == {"emotion": Votes({"joy": 2, "anger": 2}, 3)}


def test_the_fingerprint_is_of_the_votes_too_and_without_votes_what_it_was(tmp_path: Path) -> None:
    def fingerprint(name: str, utterance: Utterance) -> str:
        return UtteranceStore.open(write_store([utterance], tmp_path / name)).info.fingerprint

    plain = Utterance("a", language="en", text="a")
    before = json.dumps(["a", "train", "en", "a", [], None, None, None, []])
    assert fingerprint("plain", plain) == hashlib.sha256(before.encode()).hexdigest()
    found = {
        fingerprint(str(i), dataclasses.replace(plain, votes={"emotion": votes}))
        for i, votes in enumerate([Votes(CLEAR), Votes({"joy": 1, "neutral": 1}), Votes(CLEAR, 4)])
    }
    assert len(found) == 3


def test_a_changed_vote_in_the_store_is_found(tmp_path: Path) -> None:
    folder = write_store([voted("a", {"joy": 7})], tmp_path / "store")
    path = folder / "train.arrow"
    content = path.read_bytes()
    assert content.count(b'"joy": 7') == 1
    path.write_bytes(content.replace(b'"joy": 7', b'"joy": 8'))
    with pytest.raises(UserError, match="its column votes is not as written"):
        UtteranceStore.open(folder).split("train").column("votes")
    with pytest.raises(UserError, match="not as written"):
        UtteranceStore.open(folder).split("train")[0]


def test_a_store_of_a_version_before_votes_has_none(tmp_path: Path) -> None:
    folder = write_store([Utterance("a", language="en", text="a", labels={"emotion": "joy"})], tmp_path / "store")
    content = (folder / "train.arrow").read_bytes()
    rows = pa.ipc.open_stream(content).read_all().drop_columns(["votes"]).replace_schema_metadata(None)
    with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    entry = json.loads((folder / STORE_FILE).read_text())
    del entry["sha256"], entry["checksums"]
    (folder / STORE_FILE).write_text(json.dumps(entry))
    table = UtteranceStore.open(folder).split("train")
    assert table[0].votes == {}
    assert table.column("votes") == [{}]
    assert [q.truth for q in MerDataset(table, [EMOTION]).questions] == ["joy"]


def test_questions_carry_votes_and_ties_are_asked_where_they_are_wanted(tmp_path: Path) -> None:
    utterances = [voted("a", CLEAR), voted("b", TIE), Utterance("c", language="en", text="c", labels={"emotion": "anger"})]
    store = UtteranceStore.open(write_store(utterances, tmp_path / "store")).split("train")
    for table in (utterances, store):
        asked = MerDataset(table, [EMOTION]).questions
        assert [question.truth for question in asked] == ["joy", None, "anger"]
        assert [None if q.votes is None else sum(q.votes.counts) for q in asked] == [3, 3, None]
        untied = MerDataset(table, [EMOTION], use_votes=False)
        assert [(question.row, question.votes) for question in untied.questions] == [(0, None), (2, None)]
        assert (untied.voted["emotion"], untied.tied["emotion"]) == (2, 1)
        assert untied.label_names() == ["emotion"]
    assert MerDataset(utterances, [EMOTION]).truths(EMOTION) == ["joy", "anger"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"votes": {"mood": {"joy": 1}}}, "field 'votes' has target 'mood'; known are"),
        ({"votes": {}}, "field 'votes' is {}; it must be {target: {label: count}}"),
        ({"votes": [1]}, "field 'votes' is"),
        ({"votes": {"emotion": {"joy": "2"}}}, "votes of 'emotion': 'joy' has '2' votes"),
        ({"annotators": 3}, "'annotators' has no effect without 'votes'"),
        ({"votes": {"emotion": {"joy": 1}}, "annotators": 1.5}, "field 'annotators' is 1.5"),
    ],
)
def test_wrong_votes_of_a_manifest_are_named_by_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "hello", **fields}) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    assert "clips.jsonl:1: " in str(caught.value)
    assert message in str(caught.value)


def test_votes_of_a_public_format_read_in_place_stand_in_the_fingerprint(tmp_path: Path) -> None:
    marks = []
    for number, counts in enumerate((CLEAR, TIE)):
        path = write_manifest([voted("a", counts)], tmp_path / f"{number}.jsonl")
        marks.append(read_utterances(f"manifest:{path}")[2])
    assert marks[0] != marks[1]


def test_validate_tells_ties_contradictions_and_unknown_labels() -> None:
    utterances = [
        voted("a", CLEAR),
        voted("b", TIE),
        voted("c", CLEAR, labels={"emotion": "anger"}),
        voted("d", {"boredom": 1}),
    ]
    report = check_utterances(utterances, "here", Inspection([EMOTION]))
    found = {(f.severity, f.check): (f.count, f.first) for f in report.findings}
    assert found["info", "tied votes"] == (1, ["emotion"])
    assert found["error", "votes"] == (1, ["c (anger)"])
    assert found["error", "label"] == (1, ["d (votes)"])
    assert found["info", "majority"][0] == 2
