"""Sentences joined with voices: proportions, splits, and what is known of them by construction."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from shared_files import shared_data

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.joined import JoinedRecipe, read_joined
from llm_mer.data.sources.meld import FILES
from llm_mer.errors import UserError

CODES = {"neutral": "01", "joy": "03", "sadness": "04", "anger": "05", "surprise": "08"}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Three sentences and, of each of six actors, one clip an emotion; five emotions."""
    sentences = tmp_path / "meld"
    sentences.mkdir()
    for split, name in FILES.items():
        lines = ["Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"]
        for number, emotion in enumerate(emotion for emotion in CODES for _ in range(3)):
            lines.append(f"{split} says something {number},Joey,{emotion},neutral,{number},0")
            lines.append(f"Oh {number},Joey,{emotion},neutral,{number},1")
        (sentences / name).write_text("\n".join(lines) + "\n")
    for actor in range(1, 7):
        folder = tmp_path / "ravdess" / f"Actor_{actor:02d}"
        folder.mkdir(parents=True)
        for code in CODES.values():
            (folder / f"03-01-{code}-01-01-01-{actor:02d}.flac").touch()
    return {
        "sentences": "meld:meld",
        "voices": "ravdess:ravdess",
        "emotions": list(CODES),
        "agreement": 0.8,
        "rows": {"train": 100, "valid": 50, "test": 52},
        "least_words": 3,
        "seed": 3,
    }


def rows_of(folder: Path, recipe: dict[str, Any]) -> list[Utterance]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return list(read_joined(path))


def emotion_of_clip(utterance: Utterance) -> str:
    code = Path(str(utterance.audio)).stem.split("-")[2]
    return next(name for name, known in CODES.items() if known == code)


def test_the_target_is_the_voices_emotion(tmp_path: Path, recipe: dict[str, Any]) -> None:
    rows = rows_of(tmp_path, recipe)
    assert Counter(row.split for row in rows) == recipe["rows"]
    assert all(row.labels["emotion"] == emotion_of_clip(row) for row in rows)
    sentences = {
        f"{split} says something {number}": emotion
        for split in FILES
        for number, emotion in enumerate(emotion for emotion in CODES for _ in range(3))
    }
    assert all(row.labels["sentence_emotion"] == sentences[str(row.text)] for row in rows)  # nothing shorter was taken


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.8, 1.0])
def test_sentences_agree_in_the_stated_share_of_every_emotion(
    tmp_path: Path, recipe: dict[str, Any], agreement: float
) -> None:
    rows = [row for row in rows_of(tmp_path, {**recipe, "agreement": agreement}) if row.split == "train"]
    pairs = Counter((row.labels["emotion"], row.labels["sentence_emotion"]) for row in rows)
    for emotion in CODES:
        assert pairs[emotion, emotion] == pytest.approx(20 * agreement)
        others = [pairs[emotion, other] for other in CODES if other != emotion]
        assert sum(others) == pytest.approx(20 * (1 - agreement))
        assert max(others) - min(others) <= 1
    assert all(
        row.tags == (("agree",) if row.labels["emotion"] == row.labels["sentence_emotion"] else ("conflict",))
        for row in rows
    )


@pytest.mark.parametrize(("agreement", "ceiling"), [(0.8, 0.8), (0.2, 0.2), (0.0, 0.25)])
def test_the_words_ceiling_is_the_best_answer_from_the_sentences_emotion(
    tmp_path: Path, recipe: dict[str, Any], agreement: float, ceiling: float
) -> None:
    recipe = {**recipe, "agreement": agreement}
    rows = [row for row in rows_of(tmp_path, recipe) if row.split == "train"]
    assert JoinedRecipe.load(tmp_path / "recipe.yaml").words_ceiling == pytest.approx(ceiling)
    table = Counter((row.labels["sentence_emotion"], row.labels["emotion"]) for row in rows)
    best = sum(max(table[words, emotion] for emotion in CODES) for words in CODES) / len(rows)
    assert best >= ceiling - 1e-9  # the finite table may beat the law it was drawn from, never fall below it
    if agreement >= 0.2:
        assert best == pytest.approx(ceiling, abs=0.01)


def test_no_actor_and_no_dialogue_is_in_two_splits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    rows = rows_of(tmp_path, recipe)
    for what in (lambda row: row.speaker, lambda row: row.text, lambda row: row.audio):
        places: dict[Any, set[str]] = {}
        for row in rows:
            places.setdefault(what(row), set()).add(row.split)
        assert all(len(splits) == 1 for splits in places.values())
    assert all(row.dialogue_id is None and row.turn is None for row in rows)
    assert len({row.id for row in rows}) == len(rows)


def test_everything_is_used_equally_often(tmp_path: Path, recipe: dict[str, Any]) -> None:
    rows = [row for row in rows_of(tmp_path, recipe) if row.split == "train"]
    clips, sentences = Counter(row.audio for row in rows), Counter(row.text for row in rows)
    assert (len(clips), max(clips.values()) - min(clips.values()) <= 1) == (20, True)
    assert (len(sentences), max(sentences.values()) - min(sentences.values()) <= 1) == (15, True)


def test_the_seed_decides_everything(tmp_path: Path, recipe: dict[str, Any]) -> None:
    first = rows_of(tmp_path, recipe)
    assert rows_of(tmp_path, recipe) == first
    other = rows_of(tmp_path, {**recipe, "seed": 4})
    assert [row.id for row in other] != [row.id for row in first]
    fewer = rows_of(tmp_path, {**recipe, "rows": {"test": 52}})  # a split is drawn without regard to the others
    assert fewer == [row for row in first if row.split == "test"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agreement": 1.2}, r"field agreement is 1\.2; it must be a number in \[0, 1\]"),
        ({"agreement": True}, "field agreement is True"),
        ({"emotions": ["joy"]}, "field emotions"),
        ({"emotions": ["joy", "joy"]}, "field emotions"),
        ({"emotions": ["joy", "fear"]}, "the sentences have no fear in the split train"),
        ({"rows": {"train": 0}}, "field rows"),
        ({"rows": {"dev": 5}}, "field rows"),
        ({"rows": {}}, "field rows"),
        ({"sentences": "mosi:meld"}, "field sentences is 'mosi:meld'; it must be FORMAT:PATH with one of the formats meld"),
        ({"voices": "ravdess"}, "no such folder"),
        ({"least_words": 0}, "field least_words"),
        ({"seed": -1}, "field seed"),
        ({"share": 0.5}, "unknown field 'share'; known are sentences"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused(
    tmp_path: Path, recipe: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if change == {"voices": "ravdess"}:
        shutil.rmtree(tmp_path / "ravdess")
        change = {"voices": "ravdess:ravdess"}
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, {**recipe, **change})


def test_a_missing_field_is_named(tmp_path: Path, recipe: dict[str, Any]) -> None:
    del recipe["rows"]
    with pytest.raises(UserError, match=r"recipe\.yaml: no field 'rows'"):
        rows_of(tmp_path, recipe)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_joined(tmp_path / "recipe.yaml"))


def test_real_files() -> None:
    shared_data("meld"), shared_data("ravdess12")
    path = Path(__file__).parents[3] / "benchmarks" / "clean_bench" / "recipe.yaml"
    rows = list(read_joined(path))
    assert Counter(row.split for row in rows) == {"train": 800, "valid": 150, "test": 300}
    speakers = {split: {row.speaker for row in rows if row.split == split} for split in ("train", "valid", "test")}
    assert speakers["valid"] == {"actor-09", "actor-10"}
    assert speakers["test"] == {"actor-11", "actor-12"}
    assert len(speakers["train"]) == 8
    for split in speakers:
        part = [row for row in rows if row.split == split]
        assert sum("agree" in row.tags for row in part) == 0.8 * len(part)
