"""Reading a run's data: stores and formats alike, truths checked, features measured over training rows only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AUDIO_SIZE, VISION_SIZE, make_utterances

from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.data.sources import split_source
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.options import DataArguments
from llm_mer.training.run_data import check_prompts, measure_features, prepare_data

ONE_LANGUAGE = ["prompts/short_en_classification.yaml"]


def test_a_store_is_read_by_split_with_its_fingerprint(store: Path) -> None:
    splits, description, fingerprint = read_utterances(str(store))
    info = UtteranceStore.open(store).info
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 96, "valid": 32, "test": 32}
    assert (description, fingerprint) == (info.description, info.fingerprint)


def test_a_public_format_is_read_in_place(tmp_path: Path) -> None:
    lines = [f'{{"id": "{i}", "split": "{split}", "text": "well"}}' for i, split in enumerate(("train", "test", "test"))]
    path = tmp_path / "clips.jsonl"
    path.write_text("\n".join(lines))
    splits, description, fingerprint = read_utterances(f"manifest:{path}")
    assert {name: [u.id for u in rows] for name, rows in splits.items()} == {"train": ["0"], "test": ["1", "2"]}
    assert description == {"source": "manifest"}
    path.write_text("\n".join([*lines[:2], lines[2].replace("well", "no")]))
    assert read_utterances(f"manifest:{path}")[2] != fingerprint


@pytest.mark.parametrize(
    ("source", "message"), [("", "data: name a store"), ("vhs:tape", "unknown format 'vhs'; choose from")]
)
def test_a_source_that_is_none_is_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_utterances(source)


def test_format_and_path_are_told_from_a_path_with_a_colon(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert split_source(f"mosi:{tmp_path}") == ("mosi", tmp_path)
    assert split_source("mosi:a:b") == ("mosi", Path("a:b"))
    assert split_source(str(odd)) is None
    assert split_source("clips.jsonl") is None
    with pytest.raises(UserError, match="manifest: unknown format 'vhs'; choose from casia"):
        split_source("vhs:tape", "manifest")


def test_a_split_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert find_split({"train": []}, "train", "here") == []
    with pytest.raises(UserError, match="here: no split 'dev'; it holds test, train"):
        find_split({"train": [], "test": []}, "dev", "here")


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("train", {"emotion": "bored"}, "train-003.*label 'bored' is not in task 'emotion'; it knows neutral, joy"),
        ("valid", {"emotion": "bored"}, "valid-003.*label 'bored'"),
        ("train", {"sentiment": 7.5}, r"train-003.*score 7.5 of task 'sentiment' is not a number in \[-3.0, 3.0\]"),
    ],
)
def test_a_wrong_truth_is_named_with_its_utterance(split: str, labels: dict[str, Any], message: str, tmp_path: Path) -> None:
    utterances = [*make_utterances("train", 8), *make_utterances("valid", 8)]
    place = next(i for i, u in enumerate(utterances) if u.id == f"{split}-003")
    utterances[place] = dataclasses.replace(utterances[place], labels={**utterances[place].labels, **labels})
    data = write_store(utterances, tmp_path / "store")
    with pytest.raises(UserError, match=message):
        prepare_data(DataArguments(data=str(data), tasks=["emotion", "sentiment"]))


def test_templates_are_needed_only_where_questions_are_asked_in_words(store: Path) -> None:
    arguments = DataArguments(data=str(store), prompts=ONE_LANGUAGE)
    with pytest.raises(UserError, match="language 'zh'"):
        prepare_data(arguments)
    assert len(prepare_data(arguments, with_prompts=False).train) == 96
    english = MerDataset(list(UtteranceStore.open(store).split("train")), [get_task("emotion")], languages=["en"])
    check_prompts(english, load_prompts(ONE_LANGUAGE))


@pytest.mark.parametrize(
    ("task", "placeholder", "message"),
    [
        ("emotion", "{low}", "{low} has no meaning for task 'emotion'"),
        ("sentiment", "{labels}", "{labels} has no meaning for task 'sentiment'"),
    ],
)
def test_a_placeholder_of_the_other_kind_is_refused(
    task: str, placeholder: str, message: str, store: Path, tmp_path: Path
) -> None:
    kind = get_task(task).kind
    for language in ("en", "zh"):
        text = Path(f"prompts/short_{language}_{kind}.yaml").read_text()
        (tmp_path / f"own_{language}.yaml").write_text(text.replace("{transcript}", placeholder))
    with pytest.raises(UserError, match=message):
        prepare_data(DataArguments(data=str(store), tasks=[task], prompts=[str(tmp_path)]))


def test_a_task_without_words_in_a_language_of_the_data_is_refused(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    labels = ", ".join(f"{{name: {name}, en: {name}}}" for name in get_task("emotion").label_names)
    path.write_text(f"mood: {{kind: classification, target: emotion, labels: [{labels}]}}")
    with pytest.raises(UserError, match="task 'mood' has no label words in language 'zh'"):
        prepare_data(DataArguments(data=str(store), tasks=[str(path)]))


def test_features_are_measured_over_training_rows_only(tmp_path: Path) -> None:
    utterances = [*make_utterances("train", 8), *make_utterances("valid", 8)]
    folder = write_store(utterances, tmp_path / "store")
    train = UtteranceStore.open(folder).split("train")
    sizes, kept = measure_features(MerDataset(train, [get_task("emotion")]))
    measured_sizes, measured = measure_features(MerDataset(list(train), [get_task("emotion")]))
    assert sizes == measured_sizes == {"audio": AUDIO_SIZE, "vision": VISION_SIZE}
    steps = np.concatenate([u.audio_features for u in utterances[:8]])
    for statistics in (kept, measured):
        assert np.allclose(statistics["audio"].mean, steps.mean(axis=0), atol=1e-5)
    drawn = MerDataset(train, [get_task("emotion")], limit=4)
    _, limited = measure_features(drawn)
    steps = np.concatenate([utterances[row].audio_features for row in drawn.rows])
    assert np.allclose(limited["audio"].mean, steps.mean(axis=0), atol=1e-5)
