"""Neighbours' vectors beside an utterance's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.prepare import PrepareConfig, prepare
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.common import with_neighbours
from llm_mer.errors import UserError


def utterance(dialogue: str, turn: int, value: float | None, language: str = "en") -> Utterance:
    features = None if value is None else np.array([[value, -value]], dtype=np.float32)
    return Utterance(
        f"{language}-{dialogue}-{turn}", language=language, text="x", text_features=features, dialogue_id=dialogue, turn=turn
    )


def test_each_vector_stands_between_those_of_its_neighbours_in_turn_order() -> None:
    rows = [utterance("d", 2, 3.0), utterance("d", 0, 1.0), utterance("d", 1, 2.0)]
    found = {u.turn: u.text_features for u in with_neighbours(rows, 1)}
    assert found[0] is not None
    np.testing.assert_array_equal(found[0], [[0, 0, 1, -1, 2, -2]])
    np.testing.assert_array_equal(found[1], [[1, -1, 2, -2, 3, -3]])  # type: ignore[arg-type]
    np.testing.assert_array_equal(found[2], [[2, -2, 3, -3, 0, 0]])  # type: ignore[arg-type]


def test_order_of_rows_is_kept_and_dialogues_and_languages_do_not_mix() -> None:
    rows = [utterance("a", 0, 1.0), utterance("b", 0, 2.0), utterance("a", 0, 3.0, "zh")]
    found = with_neighbours(rows, 2)
    assert [u.id for u in found] == [u.id for u in rows]
    for before, after in zip(rows, found, strict=True):
        assert after.text_features is not None
        assert after.text_features.shape == (1, 10)
        np.testing.assert_array_equal(after.text_features[:, 4:6], before.text_features)
        assert np.abs(after.text_features).sum() == np.abs(before.text_features).sum()  # type: ignore[arg-type]


def test_a_missing_neighbour_is_zeros_and_a_missing_own_vector_stays_missing() -> None:
    found = with_neighbours([utterance("d", 0, 1.0), utterance("d", 1, None), utterance("d", 2, 5.0)], 1)
    np.testing.assert_array_equal(found[0].text_features, [[0, 0, 1, -1, 0, 0]])  # type: ignore[arg-type]
    assert found[1].text_features is None


def test_sequences_and_utterances_without_a_dialogue_are_refused_by_id() -> None:
    long = dataclasses.replace(utterance("d", 0, 1.0), text_features=np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(UserError, match=r"'en-d-0'.*2 steps"):
        with_neighbours([long], 1)
    with pytest.raises(UserError, match="dialogue_id and turn"):
        with_neighbours([dataclasses.replace(utterance("d", 0, 1.0), turn=None)], 1)


def test_prepare_takes_neighbours_into_the_store(tmp_path: Path) -> None:
    source = tmp_path / "mosi"
    source.mkdir()
    np.savez(
        source / "features.npz",
        text=np.arange(6, dtype=np.float32).reshape(3, 2) + 1,
        audio=np.ones((3, 2), dtype=np.float32),
        vision=np.ones((3, 2), dtype=np.float32),
    )
    lines = ["id,video,segment,split,score,english,chinese"]
    lines += [f"v_{i},v,{i},train,1.0,GOOD {i},好{i}" for i in range(3)]
    (source / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    from llm_mer.data.store import UtteranceStore

    folder = prepare(PrepareConfig("mosi", str(source), str(tmp_path / "store"), neighbours=1))
    store = UtteranceStore.open(folder)
    assert store.info.feature_sizes == {"text": 6, "audio": 2, "vision": 2}
    middle = next(u for u in store.split("train") if u.id == "v_1-en")
    np.testing.assert_array_equal(middle.text_features, [[1, 2, 3, 4, 5, 6]])  # type: ignore[arg-type]
    assert middle.text == "good 1"
