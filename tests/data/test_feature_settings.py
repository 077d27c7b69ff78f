"""Features extracted differently from those of a training are refused, though they have the same size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_utterances, training_options

from llm_mer.checkpoints.integrity import write_checksums
from llm_mer.cli.train import finetune
from llm_mer.data.feature_scale import check_scale
from llm_mer.data.feature_settings import FeatureSettings, check_same_features
from llm_mer.data.schema import Utterance
from llm_mer.data.statistics import FeatureStatistics
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

MADE = {"source": "clips.jsonl", "features": FeatureSettings(audio="librosa", face_model="/here/yunet.onnx").to_dict()}


def made(**changes: Any) -> dict[str, Any]:
    return {**MADE, "features": {**MADE["features"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": "egemaps"}, "audio is 'egemaps', the checkpoint was trained on 'librosa'"),
        ({"audio_rate": 25.0}, "audio_rate is 25.0, the checkpoint was trained on 12.5"),
        ({"vision_fps": 12.0}, "vision_fps is 12.0, the checkpoint was trained on 6.0"),
        ({"face_model": None}, "face_model is None, the checkpoint was trained on 'yunet.onnx'"),
        ({"audio": "a/b", "vision": "c/d"}, "audio is 'a/b'.*; vision is 'c/d', the checkpoint was trained on 'hog_flow'"),
    ],
)
def test_another_extractor_or_setting_is_named_with_both_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^store: its features were extracted differently: .*{message}"):
        check_same_features(MADE, made(**changes), ["audio", "vision"], "store", "the checkpoint")


def test_what_changes_nothing_or_is_not_read_may_differ() -> None:
    for changes in ({"device": "cuda"}, {"face_model": "/there/yunet.onnx"}, {"text": "ngrams"}):
        check_same_features(MADE, made(**changes), ["audio", "vision"], "store", "the checkpoint")
    check_same_features(made(audio="a/b"), made(audio="a/b", audio_rate=50.0), ["audio"], "store", "the checkpoint")
    check_same_features(MADE, {}, ["audio"], "store", "the checkpoint")
    check_same_features({"source": "mmsa"}, {"source": "mosi"}, ["audio"], "store", "the checkpoint")


def test_published_features_and_extracted_ones_are_told_apart() -> None:
    with pytest.raises(
        UserError, match="store has the features published with 'mosi', the checkpoint those of `llm-mer extr"
    ):
        check_same_features(MADE, {"source": "mosi"}, ["audio"], "store", "the checkpoint")
    with pytest.raises(UserError, match=r"the checkpoint has the features published with 'mmsa', store those of .*librosa"):
        check_same_features({"source": "mmsa"}, MADE, ["audio"], "store", "the checkpoint")


def utterances(values: np.ndarray) -> list[Utterance]:
    return [Utterance(f"u{i}", language="en", audio_features=part) for i, part in enumerate(np.split(values, 20))]


def test_features_of_another_scale_are_refused_in_either_direction() -> None:
    generator = np.random.default_rng(0)
    mean, std = generator.normal(200, 100, 5).astype(np.float32), generator.uniform(20, 200, 5).astype(np.float32)
    raw = (generator.normal(size=(400, 5)) * std + mean).astype(np.float32)
    scaled = ((raw - mean) / std).astype(np.float32)
    of_raw = {"audio": FeatureStatistics(mean, std)}
    of_scaled = {"audio": FeatureStatistics(np.zeros(5, np.float32), np.ones(5, np.float32))}
    check_scale(utterances(raw), of_raw, "store")
    check_scale(utterances(scaled), of_scaled, "store")
    check_scale(utterances(raw * 1.5 - 30), of_raw, "store")  # another microphone
    with pytest.raises(UserError, match=r"store: audio features have another scale .* more than 10 standard deviations"):
        check_scale(utterances(raw), of_scaled, "store")
    with pytest.raises(UserError, match=r"store: audio features have another scale .* vary by less than 1%"):
        check_scale(utterances(scaled / 10), of_raw, "store")


def test_a_feature_that_is_constant_in_training_says_nothing_of_the_scale() -> None:
    statistics = {"audio": FeatureStatistics(np.zeros(2, np.float32), np.array([0.0, 1.0], np.float32))}
    values = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    values[:, 0] = 1e6
    check_scale(utterances(values), statistics, "store")


@pytest.fixture
def rescaled(tmp_path: Path) -> Path:
    """The synthetic store with its audio in another unit."""
    found = [
        dataclasses.replace(u, audio_features=None if u.audio_features is None else u.audio_features * 1e4)
        for split in ("train", "valid", "test")
        for u in make_utterances(split, 12)
    ]
    return write_store(found, tmp_path / "rescaled")


def test_evaluation_and_inference_refuse_another_scale(trained: Path, rescaled: Path) -> None:
    with pytest.raises(UserError, match=r"rescaled, split 'test': audio features have another scale"):
        evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(rescaled)]), progress=False)
    with pytest.raises(UserError, match=r"utterance '.*': audio features have another scale"):
        MerPipeline.from_pretrained(trained)(text="I am so happy", audio_features=np.full((4, 6), 1e4, np.float32))


def test_evaluation_and_training_refuse_a_store_of_another_extractor(
    copied: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    path = copied / "llm_mer.json"
    entry = json.loads(path.read_text())
    entry["data"]["features"] = MADE["features"]
    path.write_text(json.dumps(entry))
    write_checksums(copied)
    found = [u for split in ("train", "valid", "test") for u in make_utterances(split, 16)]
    store = write_store(found, tmp_path / "other", description=made(audio="egemaps"))
    with pytest.raises(UserError, match="audio is 'egemaps', the checkpoint was trained on 'librosa'"):
        evaluate(EvaluateConfig(checkpoint=str(copied), data=[str(store)]), progress=False)
    changes: dict[str, Any] = {"tasks": ["emotion", "sentiment"], "auxiliary_head": "true", "init_checkpoint": copied}
    with pytest.raises(UserError, match=r"audio is 'egemaps', init_checkpoint: .* was trained on 'librosa'"):
        build_trainer(parse_arguments(training_options(store, backbones["llama"], tmp_path / "run", **changes)))


@pytest.mark.parametrize("alone", [False, True])
def test_a_checkpoint_with_its_labels_in_another_order_is_no_beginning(
    alone: bool, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    names = {"anger": "愤怒", "joy": "高兴", "sadness": "悲伤", "surprise": "惊讶"}
    labels = [{"name": name, "en": name, "zh": word} for name, word in names.items()]
    for name, order in (("one", labels), ("other", labels[::-1])):
        (tmp_path / name).mkdir()
        task = {"mood": {"kind": "classification", "target": "emotion", "labels": order}}
        (tmp_path / name / "mood.yaml").write_text(yaml.safe_dump(task))
    changes: dict[str, Any] = {"backbone": "none"} if alone else {}
    first = finetune(arguments(tasks=[tmp_path / "one" / "mood.yaml"], max_steps=1, output=tmp_path / "first", **changes))
    begin = {"init_checkpoint": first, "max_steps": 1, **changes}
    build_trainer(parse_arguments(arguments(tasks=[tmp_path / "one" / "mood.yaml"], output=tmp_path / "next", **begin)))
    begin["tasks"] = [tmp_path / "other" / "mood.yaml"]
    with pytest.raises(UserError, match=r"the labels of task 'mood' in the order anger, joy.*'mood' has surprise, sadness"):
        build_trainer(parse_arguments(arguments(output=tmp_path / "next", **begin)))


def test_one_clip_several_times_over_is_no_sign_of_another_scale() -> None:
    values = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    twice = [Utterance(id=name, split="test", language="en", audio_features=values.copy()) for name in "ab"]
    check_scale(twice, {"audio": FeatureStatistics(np.zeros(4, np.float32), np.ones(4, np.float32))}, "store")
