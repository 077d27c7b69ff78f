"""Reading a run's data: stores and formats alike, truths checked, features measured over training rows only."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AUDIO_SIZE, VISION_SIZE, make_utterances, training_options

from llm_mer.data.dataset import MerDataset
from llm_mer.data.fold_rules import make_folds
from llm_mer.data.folds import Folds
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.data.schema import Utterance
from llm_mer.data.sources import split_source
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.model_builder import model_feature_sizes
from llm_mer.training.options import DataArguments, ModelArguments
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run_data import check_prompts, fit_speaker_effects, measure_features, prepare_data
from llm_mer.training.setup import build_trainer

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


def test_speakers_are_looked_for_only_where_features_are_normalised_by_them(store: Path) -> None:
    class Unread(MerDataset):
        def utterance(self, row: int) -> Utterance:
            raise AssertionError("read")

    unread = Unread(UtteranceStore.open(store).split("train"), [get_task("emotion")])
    assert fit_speaker_effects(unread, [], "data") == {}
    with pytest.raises(AssertionError, match="read"):
        fit_speaker_effects(unread, ["audio"], "data")


def test_what_no_training_utterance_has_is_not_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [dataclasses.replace(u, vision_features=None) for u in make_utterances("train", 8)]
    folder = write_store([*train, *make_utterances("valid", 8)], tmp_path / "store")
    run = prepare_data(DataArguments(data=str(folder)))
    assert run.feature_sizes.keys() == run.statistics.keys() == {"audio"}
    assert "vision: no training utterance has it, so the model does not read it" in caplog.text


def test_text_is_read_however_late_it_comes(tmp_path: Path) -> None:
    silent = [dataclasses.replace(u, text=None) for u in make_utterances("train", 300, dialogues=False)]
    spoken = [dataclasses.replace(u, id=f"spoken-{u.id}") for u in make_utterances("train", 2, dialogues=False)]
    folder = write_store([*silent, *spoken], tmp_path / "store")
    run = prepare_data(DataArguments(data=str(folder)))
    assert model_feature_sizes(run, ModelArguments(), 48)["text"] == 48


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"eval_split": "train"}, "eval_split is train_split, 'train': its scores are of what was trained on"),
        ({"dialogue_id": "train-en-0"}, {}, "1 dialogues are in 'train' and in 'valid', e.g. 'train-en-0': scores there"),
        (
            {"audio": "one.wav"},
            {},
            "1 media files are in 'train' and in 'valid', e.g. one.wav: scores there are of",
        ),
        ({"labels": {"sentiment": 1.0}}, {}, "split 'valid' has no label of task 'emotion': it is not evaluated"),
        ({}, {"limit_train": 1}, "task 'emotion': every training question has the answer '[a-z]+': nothing to tell apart"),
    ],
    ids=["one split", "a dialogue", "a file", "no label", "one answer"],
)
def test_scores_that_mean_less_than_they_seem_to_are_said(
    change: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [dataclasses.replace(u, audio="one.wav") for u in make_utterances("train", 8)]
    valid = [dataclasses.replace(u, **change) for u in make_utterances("valid", 8)]
    folder = write_store([*train, *valid], tmp_path / "store")
    prepare_data(DataArguments(data=str(folder), tasks=["emotion", "sentiment"], **options))
    assert re.search(message, caplog.text), caplog.text


def test_clean_splits_are_said_nothing_of(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_data(DataArguments(data=str(store), tasks=["emotion", "sentiment"]))
    assert not caplog.records


def test_names_that_look_alike_are_refused_across_splits(tmp_path: Path) -> None:
    valid = [dataclasses.replace(u, speaker=f"{u.speaker} ") for u in make_utterances("valid", 8)]
    folder = write_store([*make_utterances("train", 8), *valid], tmp_path / "store")
    with pytest.raises(UserError, match="speakers 'A' and 'A ' look alike and are not the same text"):
        prepare_data(DataArguments(data=str(folder)))


def test_a_language_that_the_split_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    english = [u for u in make_utterances("train", 8) if u.language == "en"]
    folder = write_store(english, tmp_path / "store")
    with pytest.raises(UserError, match="split 'train' has no utterance in zh; its languages are en"):
        prepare_data(DataArguments(data=str(folder), languages=["zh"]))


def test_a_split_without_questions_is_not_said_to_be_missing(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    valid = [dataclasses.replace(u, labels={"sentiment": 1.0}) for u in make_utterances("valid", 8)]
    folder = write_store([*make_utterances("train", 8), *valid], tmp_path / "store")
    changes = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    with pytest.raises(UserError, match="no question in 'valid' to evaluate on; set eval_strategy: no"):
        build_trainer(parse_arguments(arguments(data=folder, **changes)))


def test_a_run_on_a_fold_names_its_file_and_is_repeated_and_evaluated_on_that_fold_alone(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llm_mer.cli.train import finetune
    from llm_mer.evaluation.calibrate import calibrate
    from llm_mer.evaluation.evaluate import evaluate_checkpoint
    from llm_mer.evaluation.options import CalibrateConfig, EvaluateConfig
    from llm_mer.training.reproduce import reproduce
    from llm_mer.training.reproduce_options import ReproduceConfig

    splits = read_utterances(str(store))[0]
    make_folds([u for part in splits.values() for u in part], "3", 0.2, 0).save(tmp_path / "folds.json")
    fold = ["--folds", str(tmp_path / "folds.json"), "--fold", "2"]
    run = finetune([*training_options(store, "none", tmp_path / "run"), *fold])
    moved = tmp_path / "folds.json"
    moved = moved.rename(tmp_path / "moved.json")
    with pytest.raises(UserError, match=r"folds\.json: no such file of folds; .*their folds with --folds"):
        reproduce(ReproduceConfig(run=str(run)))
    again = reproduce(ReproduceConfig(run=str(run), folds=str(moved)))
    assert again is not None
    assert again.agreement.weights is True

    common = {"checkpoint": str(run), "folds": str(moved), "fold": "2"}
    evaluate_checkpoint(EvaluateConfig(data=[str(store)], resamples=20, output=str(tmp_path / "scores"), **common))
    tested = Folds.load(moved).fold("2", "").test
    lines = (tmp_path / "scores" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(tested)
    calibrate(CalibrateConfig(data=str(store), **common))
    message = r"trained on fold '2' of these data.*--folds FILE --fold 2"
    for other in ({**common, "fold": "1"}, {"checkpoint": str(run)}):
        with pytest.raises(UserError, match=message):
            evaluate_checkpoint(EvaluateConfig(data=[str(store)], output=str(tmp_path / "other"), **other))
        with pytest.raises(UserError, match=message):
            calibrate(CalibrateConfig(data=str(store), **other))


def test_a_fold_is_named_by_its_file_and_its_name() -> None:
    for given, message in (
        ({"folds": "f.json"}, "folds: 'f.json' without fold"),
        ({"fold": "1"}, "fold: '1' without folds"),
    ):
        with pytest.raises(UserError, match=message):
            DataArguments(data="x", **given)
