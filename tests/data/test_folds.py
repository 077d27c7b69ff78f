"""Folds: every utterance is tested once, no group is in two parts, and a file of folds is read back or refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from llm_mer.data.fold_rules import balanced_parts, make_folds, warn_of_shared
from llm_mer.data.folds import Fold, Folds, fold_fingerprint, select_fold
from llm_mer.data.reading import read_utterances
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError


def spoken(name: str, **of: Any) -> Utterance:
    return Utterance(name, language="en", text="so it is", **of)


def conversations(random: np.random.Generator, dialogues: int, speakers: int, sessions: int = 3) -> list[Utterance]:
    """Dialogues of 1 to 9 utterances by two speakers each, in random order; a session holds speakers of its own."""
    found = []
    for number in range(dialogues):
        session = int(random.integers(sessions))
        pair = [f"s{session}-{int(k)}" for k in random.choice(speakers, 2, replace=False)]
        for turn in range(int(random.integers(1, 10))):
            own = {"dialogue_id": f"d{number}", "turn": turn, "speaker": pair[turn % 2], "tags": (f"session:{session}",)}
            found.append(spoken(f"d{number}-{turn}", **own))
    return [found[i] for i in random.permutation(len(found))]


def check_partition(utterances: list[Utterance], folds: Folds) -> None:
    names = {u.id for u in utterances}
    assert Counter(i for fold in folds.folds for i in fold.test) == Counter(names)
    for fold in folds.folds:
        assert Counter((*fold.train, *fold.valid, *fold.test)) == Counter(names)


def names_of(utterances: list[Utterance], field: str) -> dict[str, str]:
    if field == "session":
        return {u.id: u.tags[0] for u in utterances}
    return {u.id: getattr(u, "dialogue_id" if field == "dialogue" else field) for u in utterances}


def overlap(ids: tuple[str, ...], others: tuple[str, ...], names: dict[str, str]) -> set[str]:
    return {names[i] for i in ids} & {names[i] for i in others}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["session", "speaker", "2", "5"]), st.sampled_from([0.0, 0.1, 0.4]))
def test_every_utterance_is_tested_once_and_no_group_is_in_two_parts(seed: int, by: str, validation: float) -> None:
    utterances = conversations(np.random.default_rng(seed), 24, 3)
    folds = make_folds(utterances, by, validation, seed)
    check_partition(utterances, folds)
    tested, validating = {"session": ("session", "dialogue"), "speaker": ("speaker", "speaker")}.get(
        by, ("dialogue", "dialogue")
    )
    assert (folds.by, folds.validation_by) == (tested, validating)
    for fold in folds.folds:
        assert not overlap(fold.test, (*fold.train, *fold.valid), names_of(utterances, tested))
        assert not overlap(fold.train, fold.valid, names_of(utterances, validating))
        assert bool(fold.valid) == bool(validation)
        if by in ("session", "speaker"):
            assert {names_of(utterances, by)[i].removeprefix("session:") for i in fold.test} == {fold.name}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=4, max_size=40), st.integers(2, 4), st.integers(0, 1000))
def test_parts_are_as_large_as_those_of_scikit_learns_group_k_fold(sizes: list[int], count: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    theirs = sorted(len(test) for _, test in GroupKFold(count).split(groups, groups=groups))
    given_sizes = {("dialogue", str(i)): size for i, size in enumerate(sizes)}
    parts = balanced_parts(given_sizes, count, seed)
    assert sorted(sum(given_sizes[name] for name in part) for part in parts) == theirs
    assert sorted(name for part in parts for name in part) == sorted(given_sizes)


def test_the_validation_share_is_the_nearest_that_whole_groups_give() -> None:
    utterances = [spoken(f"{speaker}-{i}", speaker=f"s{speaker}") for speaker in range(12) for i in range(60)]
    for share, held in ((0.01, 1), (0.1, 1), (0.15, 2), (0.5, 5), (0.99, 10)):  # of 11: .5 are 5 or 6, and one is left
        folds = make_folds(utterances, "speaker", share, 0)
        assert {len(fold.valid) // 60 for fold in folds.folds} <= {held, held + (share == 0.5)}
    drawn = {frozenset(name[:2] for name in fold.valid) for fold in make_folds(utterances, "speaker", 0.1, 0).folds}
    assert len(drawn) > 1  # not the same speakers in every fold


def test_folds_follow_from_the_seed_alone() -> None:
    utterances = conversations(np.random.default_rng(0), 20, 3)
    assert make_folds(utterances, "5", 0.1, 3) == make_folds(utterances, "5", 0.1, 3)
    assert make_folds(utterances, "5", 0.1, 3) != make_folds(utterances, "5", 0.1, 4)


def test_without_dialogues_folds_keep_speakers_whole_and_without_these_utterances(caplog: Any) -> None:
    by_speaker = [spoken(str(i), speaker=f"s{i % 5}") for i in range(20)]
    assert make_folds(by_speaker, "5", 0.1, 0).by == "speaker"
    assert "the folds keep speakers whole" in caplog.text
    assert make_folds([spoken(str(i)) for i in range(20)], "4", 0.1, 0).by == "utterance"
    alone = [spoken(str(i), dialogue_id=f"d{i}", turn=0, speaker=f"s{i % 5}") for i in range(20)]
    assert make_folds(alone, "5", 0.1, 0).by == "speaker"  # no dialogue has two utterances


def test_iemocaps_sessions_are_read_off_its_names() -> None:
    utterances = [
        spoken(f"Ses0{s}F_impro01_M{i:03d}", dialogue_id=f"Ses0{s}F_impro01", turn=i, speaker=f"Ses0{s}M")
        for s in range(1, 6)
        for i in range(3)
    ]
    assert make_folds(utterances, "session", 0.2, 0).names == ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]


@pytest.mark.parametrize(
    ("utterances", "by", "validation", "message"),
    [
        ([spoken("a"), spoken("b")], "session", 0.1, "'a' has none; looked for a tag session:NAME .* with Ses01"),
        ([spoken("a"), spoken("b")], "speaker", 0.1, "'a' has none; looked for the field speaker"),
        (
            [spoken("a", tags=("session:1", "session:2"))],
            "session",
            0.1,
            r"'a' has the sessions \['1', '2'\]; it may have one",
        ),
        ([spoken("a", speaker="x"), spoken("b", speaker="x")], "speaker", 0.1, "all 2 utterances are of 'x'"),
        ([spoken("a", speaker="x"), spoken("b", speaker="y")], "speaker", 0.1, "fold 'x': its training part is one speaker"),
        ([spoken("a"), spoken("b")], "3", 0.1, "--folds 3: the data have 2 utterances"),
        ([spoken("a"), spoken("b")], "1", 0.1, "--folds 1: write session, speaker, a number of folds from 2"),
        ([spoken("a"), spoken("b")], "leave", 0.1, "--folds leave: write session, speaker"),
        ([spoken("a"), spoken("b")], "2", 1.0, "--validation 1.0: it must be a share"),
    ],
)
def test_folds_that_cannot_be_are_refused(utterances: list[Utterance], by: str, validation: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_folds(utterances, by, validation, 0)


def test_a_file_of_folds_is_read_back_and_its_parts_are_the_splits(tmp_path: Path) -> None:
    utterances = conversations(np.random.default_rng(1), 12, 3)
    folds = make_folds(utterances, "3", 0.2, 0, "abc")
    folds.save(tmp_path / "folds.json")
    assert Folds.load(tmp_path / "folds.json") == folds
    splits = {"train": utterances[:10], "test": utterances[10:]}
    for fold in folds.folds:
        parts = select_fold(splits, fold, "folds.json")
        assert {split: sorted(u.id for u in part) for split, part in parts.items()} == {
            split: sorted(ids) for split, ids in fold.parts().items()
        }
        assert all(u.split == split for split, part in parts.items() for u in part)
    one = folds.folds[0]
    assert fold_fingerprint("x", one) == fold_fingerprint("x", Fold("other", one.train[::-1], one.valid, one.test))
    assert len({fold_fingerprint(data, fold) for data in "xy" for fold in folds.folds}) == 6


def content(**changes: Any) -> dict[str, Any]:
    one = {"name": "1", "train": ["a"], "valid": ["b"], "test": ["c", "d"], **changes}
    return {"folds": [one, {"name": "2", "train": ["c", "d"], "test": ["a", "b"]}]}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content(test=["a"]), "fold '1': utterance 'a' is in train and test"),
        (content(train=["c", "c"], test=["a"]), "fold '1': utterance 'c' is in train and train"),
        (content(train=["c"], test=["a", "d"], valid=[]), "utterance 'a' is tested in the folds '1' and '2'"),
        (content(train=[]), "fold '1': train is empty"),
        (content(name="2"), "two folds are called '2'"),
        (content(name=3), "field 'name' is 3"),
        (content(test="c"), "folds.0.: field 'test' must be a list of utterance ids"),
        (content(dev=["b"]), "folds.0.: found dev, name, test, train, valid; a fold has the fields"),
        ({"folds": []}, "field 'folds' must be a list"),
        ({**content(), "kfold": 5}, "unknown fields .*kfold"),
    ],
)
def test_a_file_that_tests_twice_or_trains_on_what_it_tests_is_refused(
    tmp_path: Path, written: dict[str, Any], message: str
) -> None:
    (tmp_path / "folds.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*{message}"):
        Folds.load(tmp_path / "folds.json")


def test_a_fold_of_a_data_set_is_read_by_its_name_and_one_of_other_data_is_refused(tmp_path: Path) -> None:
    lines = [{"id": name, "text": "so it is", "language": "en", "split": "test", "session": name} for name in "abcd"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "folds.json").write_text(json.dumps(content()), encoding="utf-8")
    source, file = f"manifest:{tmp_path / 'm.jsonl'}", str(tmp_path / "folds.json")
    whole, _, fingerprint = read_utterances(source)
    assert [u.tags for u in whole["test"]] == [(f"session:{name}",) for name in "abcd"]
    splits, description, own = read_utterances(source, file, "1")
    assert {split: [u.id for u in part] for split, part in splits.items()} == {
        "train": ["a"],
        "valid": ["b"],
        "test": ["c", "d"],
    }
    assert description["fold"] == {"name": "1", "data": fingerprint}
    splits, _, other = read_utterances(source, file, "2")
    assert set(splits) == {"train", "test"}
    assert len({own, other, fingerprint}) == 3
    with pytest.raises(UserError, match="no fold '3'; it holds"):
        read_utterances(source, file, "3")
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines[:3])), encoding="utf-8")
    with pytest.raises(UserError, match=r"the data have no utterance \['d'\]; these folds are of other data"):
        read_utterances(source, file, "1")


def test_a_session_given_by_field_and_by_tag_is_refused(tmp_path: Path) -> None:
    line = {"id": "a", "text": "so it is", "language": "en", "session": 3, "tags": ["session:4"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(UserError, match=r"m\.jsonl:1: the session is given twice"):
        read_utterances(f"manifest:{tmp_path / 'm.jsonl'}")


def test_speakers_and_dialogues_that_are_tested_and_trained_on_are_said(caplog: Any) -> None:
    utterances = conversations(np.random.default_rng(2), 20, 3)
    warn_of_shared(utterances, make_folds(utterances, "5", 0.1, 0))
    assert "a speaker is tested and trained on" in caplog.text
    assert "a dialogue is" not in caplog.text
    caplog.clear()
    warn_of_shared(utterances, make_folds(utterances, "speaker", 0.1, 0))
    assert "a dialogue is tested and trained on" in caplog.text
    assert "a speaker is" not in caplog.text
    caplog.clear()
    warn_of_shared(utterances, make_folds(utterances, "session", 0.1, 0))
    assert not caplog.text
