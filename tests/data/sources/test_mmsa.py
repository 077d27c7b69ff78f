"""MMSA pickles: padding goes, order and scores stay, Chinese is recognised."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.data.dataset import MerDataset
from llm_mer.data.prepare import PrepareConfig, prepare
from llm_mer.data.sources.mmsa import read_mmsa
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.data.validation.validate import ValidateConfig, validate
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

TEXTS = {"en": ["GOOD FILM", "BAD", "SO SO"], "zh": ["很好看。", "OK", "一般"]}


def part(split: str, language: str = "en", aligned: bool = False) -> dict[str, Any]:
    generator = np.random.default_rng(len(split))
    steps = {"text": 6, "audio": 6, "vision": 6} if aligned else {"text": 6, "audio": 9, "vision": 8}
    sizes = {"text": 5, "audio": 4, "vision": 3}
    lengths = {name: [3, 1, 4] if aligned or name == "text" else [2, 5, steps[name]] for name in steps}
    content: dict[str, Any] = {
        "raw_text": np.array(TEXTS[language]),
        "id": [f"video_{split}$_${n:04d}" for n in (10, 9, 2)],
        "annotations": ["Positive", "Negative", "Neutral"],
        "classification_labels": np.array([2.0, 0.0, 1.0]),
        "regression_labels": np.array([1.0, -0.8, 0.0], dtype=np.float32),
    }
    for name, count in steps.items():
        values = generator.normal(size=(3, count, sizes[name])).astype(np.float64 if name == "vision" else np.float32)
        if name != "text":  # a language model's embeddings of padding are not zero
            for row, length in enumerate(lengths[name]):
                values[row, length:] = 0
        content[name] = values
    mask = np.zeros((3, 3, 6), dtype=np.float32)
    for row, length in enumerate(lengths["text"]):
        mask[row, 1, :length] = 1
    content["text_bert"] = mask
    if not aligned:
        content["audio_lengths"] = lengths["audio"]
        content["vision_lengths"] = np.array(lengths["vision"])
    return content


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def whole(language: str = "en", aligned: bool = False) -> dict[str, Any]:
    return {split: part(split, language, aligned) for split in ("train", "valid", "test")}


def test_unaligned_lengths_cut_the_padding(tmp_path: Path) -> None:
    content = whole()
    found = list(read_mmsa(pickled(tmp_path / "unaligned_50.pkl", content)))
    assert [u.split for u in found] == ["train"] * 3 + ["valid"] * 3 + ["test"] * 3
    first = found[0]
    assert (first.id, first.dialogue_id, first.turn) == ("video_train$_$0010", "video_train", 10)
    assert (first.text, first.language) == ("GOOD FILM", "en")
    assert [u.labels for u in found[:3]] == [
        {"sentiment": 1.0, "polarity": "positive"},
        {"sentiment": pytest.approx(-0.8), "polarity": "negative"},
        {"sentiment": 0.0},
    ]
    assert [len(u.audio_features) for u in found[:3]] == [2, 5, 9]
    assert [len(u.vision_features) for u in found[:3]] == [2, 5, 8]
    assert [len(u.text_features) for u in found[:3]] == [3, 1, 4]
    np.testing.assert_array_equal(found[1].audio_features, content["train"]["audio"][1, :5])
    assert found[1].vision_features.dtype == np.float32


def test_aligned_modalities_are_cut_alike(tmp_path: Path) -> None:
    content = whole(aligned=True)
    content["train"]["audio"][0, :] = 0  # silence is no padding while another modality goes on
    found = list(read_mmsa(pickled(tmp_path / "aligned_50.pkl", content)))
    for utterance, length in zip(found[:3], (3, 1, 4), strict=True):
        shapes = [f.shape[0] for f in (utterance.text_features, utterance.audio_features, utterance.vision_features)]
        assert shapes == [length] * 3


def test_aligned_padding_in_front_is_cut_too(tmp_path: Path) -> None:
    content = {"train": part("train", aligned=True)}
    del content["train"]["text_bert"], content["train"]["text"]
    for name in ("audio", "vision"):
        content["train"][name] = content["train"][name][:, ::-1]
    found = list(read_mmsa(pickled(tmp_path / "aligned_50.pkl", content)))
    assert [len(u.audio_features) for u in found] == [3, 1, 4]
    np.testing.assert_array_equal(found[0].audio_features, content["train"]["audio"][0, 3:])
    assert found[0].text_features is None


def test_chinese_is_inferred_for_the_whole_file(tmp_path: Path) -> None:
    found = list(read_mmsa(pickled(tmp_path / "ch-simsv2s.pkl", whole("zh"))))
    assert {u.language for u in found} == {"zh"}
    assert {u.language for u in read_mmsa(tmp_path / "ch-simsv2s.pkl", language="en")} == {"en"}


@pytest.mark.parametrize("aligned", [True, False])
def test_scores_of_single_modalities_are_targets_of_their_own(tmp_path: Path, aligned: bool) -> None:
    content = whole("zh", aligned)
    for split in content:
        for letter, score in zip("TAV", (-0.6, 0.2, 1.0), strict=True):
            content[split][f"regression_labels_{letter}"] = np.full(3, score)
    found = list(read_mmsa(pickled(tmp_path / "ch-sims.pkl", content)))
    assert found[2].labels == {"sentiment": 0.0, "sentiment_text": -0.6, "sentiment_audio": 0.2, "sentiment_vision": 1.0}
    content["valid"]["regression_labels_A"][1] = 4
    with pytest.raises(UserError, match=r"valid: utterance 'video_valid\$_\$0009': field regression_labels_A is 4"):
        list(read_mmsa(pickled(tmp_path / "ch-sims.pkl", content)))


def test_annotations_beyond_the_three_are_no_polarity_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = whole()
    content["train"]["annotations"] = ["Positive", "Weak Negative", "Neutral"]
    with caplog.at_level(logging.WARNING):
        found = list(read_mmsa(pickled(tmp_path / "x.pkl", content)))[:3]
    assert [u.labels.get("polarity") for u in found] == ["positive", None, None]
    assert "x.pkl: train: unknown annotations are left out: weak negative" in caplog.text


def test_a_file_without_annotations_has_no_polarity(tmp_path: Path) -> None:
    content = whole()
    for split in content:
        del content[split]["annotations"]
    assert {tuple(u.labels) for u in read_mmsa(pickled(tmp_path / "x.pkl", content))} == {("sentiment",)}


def test_the_segments_number_is_the_turn_whatever_the_files_order(tmp_path: Path) -> None:
    folder = write_store(read_mmsa(pickled(tmp_path / "x.pkl", whole())), tmp_path / "store")
    dataset = MerDataset(UtteranceStore.open(folder).split("train"), [get_task("mosi")])
    assert dataset.window(0).rows == [2, 1, 0]  # segments 10, 9 and 2 in the file


def test_a_sequence_without_a_step_is_a_missing_modality(tmp_path: Path) -> None:
    content = whole()
    content["train"]["audio_lengths"][0] = 0
    assert next(iter(read_mmsa(pickled(tmp_path / "x.pkl", content)))).audio_features is None


def test_published_infinities_and_nan_read_as_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = whole()
    content["train"]["audio"][0, 0, 0] = -np.inf
    content["train"]["vision"][0, 0, 0] = np.nan
    first, *_ = read_mmsa(pickled(tmp_path / "x.pkl", content), missing_values="zero")
    assert first.audio_features[0, 0] == first.vision_features[0, 0] == 0
    assert "train: 1 values of audio are not finite, and were read as 0" in caplog.text
    assert "train: 1 values of vision are not finite, and were read as 0" in caplog.text
    content["train"]["audio"][0, 0, 0] = np.nan
    with pytest.raises(UserError, match="audio_features holds NaN"):
        write_store(read_mmsa(pickled(tmp_path / "x.pkl", content), missing_values="zero"), tmp_path / "store")


def test_unasked_no_gap_becomes_a_number_and_validation_sees_each(tmp_path: Path) -> None:
    content = whole()
    content["train"]["vision"][0, 0, 0] = np.nan
    path = pickled(tmp_path / "x.pkl", content)
    found = validate(ValidateConfig(f"mmsa:{path}")).findings
    assert [(f.check, f.split, f.count) for f in found if f.check == "not finite"] == [("not finite", "train", 1)]
    with pytest.raises(UserError, match=r"vision_features holds NaN or infinity in float32.*missing_values zero"):
        prepare(PrepareConfig("mmsa", str(path), str(tmp_path / "store")))
    prepare(PrepareConfig("mmsa", str(path), str(tmp_path / "store"), missing_values="zero"))
    with pytest.raises(UserError, match="missing_values: the format mosi has no such option"):
        prepare(PrepareConfig("mosi", str(path), str(tmp_path / "other"), missing_values="zero"))
    with pytest.raises(UserError, match="missing_values is 'mean'; it must be one of refuse, zero"):
        next(iter(read_mmsa(path, missing_values="mean")))


def test_an_id_without_a_number_has_no_place_in_a_dialogue(tmp_path: Path) -> None:
    content = whole()
    content["train"]["id"] = ["a", "b$_$c", "d$_$3"]
    found = list(read_mmsa(pickled(tmp_path / "x.pkl", content)))[:3]
    assert [(u.dialogue_id, u.turn) for u in found] == [(None, None), (None, None), ("d", 3)]


def test_other_parts_are_named_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = list(read_mmsa(pickled(tmp_path / "x.pkl", {"test": part("test"), "unlabelled": {}})))
    assert len(found) == 3
    assert "unlabelled" in caplog.text


def test_a_store_is_written(tmp_path: Path) -> None:
    folder = write_store(read_mmsa(pickled(tmp_path / "x.pkl", whole("zh"))), tmp_path / "store")
    store = UtteranceStore.open(folder)
    assert store.info.feature_sizes == {"text": 5, "audio": 4, "vision": 3}
    assert store.info.counts == {"train": 3, "valid": 3, "test": 3}


@pytest.mark.parametrize("field", ["raw_text", "id", "audio", "vision", "regression_labels", "vision_lengths"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = whole()
    del content["valid"][field]
    with pytest.raises(UserError, match=rf"x\.pkl: valid has no field {field}"):
        list(read_mmsa(pickled(tmp_path / "x.pkl", content)))


@pytest.mark.parametrize(
    "field", ["raw_text", "audio", "vision", "regression_labels", "audio_lengths", "annotations", "text", "text_bert"]
)
def test_rows_that_disagree_are_named(tmp_path: Path, field: str) -> None:
    content = whole()
    content["test"][field] = content["test"][field][:2]
    with pytest.raises(UserError, match=rf"x\.pkl: test: field {field} has 2 rows, id has 3"):
        list(read_mmsa(pickled(tmp_path / "x.pkl", content)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("audio_lengths", [2, 10, 9], "field audio_lengths is 10, but audio has 9 steps"),
        ("vision_lengths", [-1, 1, 1], "field vision_lengths is -1"),
        ("audio_lengths", ["a", 1, 1], "field audio_lengths is 'a'"),
        ("regression_labels", [1.0, 3.5, 0.0], "field regression_labels is 3.5"),
        ("regression_labels", [1.0, float("nan"), 0.0], "field regression_labels is nan"),
        ("regression_labels", ["good", 1.0, 0.0], "field regression_labels is 'good'"),
        ("audio", np.zeros((3, 9)), "field audio has shape"),
        ("vision", [["a"], ["b"], ["c"]], "field vision is not an array of numbers"),
    ],
)
def test_wrong_values_name_file_utterance_and_field(tmp_path: Path, field: str, value: Any, message: str) -> None:
    content = whole()
    content["train"][field] = value
    with pytest.raises(UserError, match=r"x\.pkl: train: utterance 'video_train") as caught:
        list(read_mmsa(pickled(tmp_path / "x.pkl", content)))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"train": [1]}, {"train": {}}])
def test_other_pickles_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"x\.pkl"):
        list(read_mmsa(pickled(tmp_path / "x.pkl", content)))
