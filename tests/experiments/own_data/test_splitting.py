"""Splits that are drawn keep speakers, dialogues and files apart, and spread labels; the same seed draws the same."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.splitting import count_labels, draw_splits, find_splits
from llm_mer.prompting.tasks import Task

MOOD = Task.from_dict(
    "mood", {"kind": "classification", "labels": [{"name": name, "en": name} for name in ("calm", "tense", "bored")]}
)
SCORE = Task.from_dict("pleasure", {"kind": "regression", "range": [0, 100], "decimals": 0})


def utterance(number: int, **changes: object) -> Utterance:
    fields = {"labels": {"mood": MOOD.label_names[number % 3], "pleasure": float(number)}, "text": "hello"}
    return Utterance(f"u{number}", "test", "en", **{**fields, **changes})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=3, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_group_is_in_two_splits_and_none_of_them_is_empty(rows: list[tuple[int, int]], seed: int) -> None:
    groups, strata = [group for group, _ in rows], [stratum for _, stratum in rows]
    if len(set(groups)) < 3:
        return
    names = draw_splits(groups, strata, seed)
    assert names == draw_splits(groups, strata, seed)
    assert set(names) == {"train", "valid", "test"}
    places = defaultdict(set)
    for group, name in zip(groups, names, strict=True):
        places[group].add(name)
    assert all(len(found) == 1 for found in places.values())


@pytest.mark.parametrize(("count", "share"), [(40, 0.2), (600, 0.1)])
def test_labels_are_spread_and_held_out_splits_have_their_share(count: int, share: float) -> None:
    utterances = [utterance(number) for number in range(count)]
    splits = find_splits(utterances, [False] * count, MOOD, "auto", 0, "clips.csv")
    assert splits.drawn
    sizes = Counter(splits.names)
    for name in ("valid", "test"):
        assert abs(sizes[name] - share * count) <= 1
        counts = count_labels(utterances, splits.names, MOOD)[name]
        assert max(counts.values()) - min(counts.values()) <= 1
    scores = find_splits(utterances, [False] * count, SCORE, "auto", 0, "clips.csv").names
    tested = [u.labels["pleasure"] / count for u, name in zip(utterances, scores, strict=True) if name == "test"]
    assert min(tested) < 0.25
    assert max(tested) > 0.75


def test_clips_of_one_speaker_one_dialogue_or_one_file_stay_together() -> None:
    shared = [
        *(utterance(n, speaker=f"S{n % 4}", dialogue_id=f"d{n % 4}", turn=n) for n in range(16)),
        *(utterance(n, speaker="other", vision="one.mp4") for n in range(16, 18)),
        utterance(18, vision="one.mp4"),
        utterance(19),
    ]
    names = find_splits(shared, [False] * 20, MOOD, "auto", 3, "clips.csv").names
    for speaker in ("S0", "S1", "S2", "S3", "other"):
        assert len({name for u, name in zip(shared, names, strict=True) if u.speaker == speaker}) == 1
    assert len(set(names[16:19])) == 1


def test_too_few_speakers_are_refused_with_what_decides() -> None:
    two = [utterance(n, speaker=f"S{n % 2}", dialogue_id=f"d{n // 4}", turn=n) for n in range(16)]
    with pytest.raises(UserError, match=r"kept apart by speaker, the clips are 1 group, .* --split_by dialogue_id or clip"):
        find_splits(two, [False] * 16, MOOD, "auto", 0, "clips.csv")
    names = find_splits(two, [False] * 16, MOOD, "dialogue_id", 0, "clips.csv").names
    assert len({name for u, name in zip(two, names, strict=True) if u.dialogue_id == "d1"}) == 1
    assert set(find_splits(two, [False] * 16, MOOD, "clip", 0, "clips.csv").names) == {"train", "valid", "test"}
    with pytest.raises(UserError, match="--split_by speaker: no row has one"):
        find_splits([utterance(n) for n in range(9)], [False] * 9, MOOD, "speaker", 0, "clips.csv")


def test_splits_of_the_table_are_kept_and_half_of_them_refused() -> None:
    named = [utterance(n) for n in range(3)]
    for each, split in zip(named, ("train", "train", "test"), strict=True):
        each.split = split
    assert find_splits(named, [True] * 3, MOOD, "auto", 0, "clips.csv").names == ("train", "train", "test")
    with pytest.raises(UserError, match=r"clips\.csv: 1 of 3 rows have no split, the first 'u1'"):
        find_splits(named, [True, False, True], MOOD, "auto", 0, "clips.csv")
    named[2].split = "valid"
    with pytest.raises(UserError, match=r"clips\.csv: no row has the split 'test'"):
        find_splits(named, [True] * 3, MOOD, "auto", 0, "clips.csv")
