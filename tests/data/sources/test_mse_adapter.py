"""MSE-Adapter pickles: one file or a folder, labels under the task's names."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.data.sources.mse_adapter import read_mse_adapter
from llm_mer.errors import UserError


def entry(label: str, text: str = "hello", audio_len: Any = 3, video_len: Any = 2) -> dict[str, Any]:
    features = {
        "audio": np.ones((5, 4), dtype=np.float64),
        "video": np.ones((4, 3), dtype=np.float32),
        "text": text,
        "audio_len": audio_len,
        "video_len": video_len,
    }
    return {"features": features, "label": label}


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    for name, count in (("test", 1), ("valid", 2), ("train", 3)):
        pickled(tmp_path / f"meld_{name}.pkl", [entry("joy")] * count)
    found = list(read_mse_adapter(tmp_path))
    assert [u.split for u in found] == ["train"] * 3 + ["valid"] * 2 + ["test"]
    assert [u.id for u in found][-2:] == ["meld-valid-00001", "meld-test-00000"]
    first = found[0]
    assert (first.text, first.language, first.labels) == ("hello", "en", {"emotion": "joy"})
    assert (first.audio_features.shape, first.vision_features.shape) == ((3, 4), (2, 3))
    assert first.audio_features.dtype == np.float32
    assert (first.dialogue_id, first.turn, first.speaker) == (None, None, None)


def test_cherma_words_are_stored_under_their_names(tmp_path: Path) -> None:
    words = ["愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇"]
    file = pickled(tmp_path / "cherma_dev.pkl", [entry(word, "你好") for word in words])
    found = list(read_mse_adapter(file))
    assert [u.labels["emotion"] for u in found] == ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
    assert {(u.split, u.language) for u in found} == {("valid", "zh")}


def test_iemocap_short_labels_are_read(tmp_path: Path) -> None:
    file = pickled(tmp_path / "iemocap_test.pkl", [entry(label) for label in ("hap", "exc", "frustrated")])
    assert [u.labels["emotion"] for u in read_mse_adapter(file)] == ["happy", "excited", "frustrated"]


def test_a_label_the_task_ignores_is_kept_as_it_is(tmp_path: Path) -> None:
    file = pickled(tmp_path / "iemocap_test.pkl", [entry("xxx"), entry("ang")])
    assert [u.labels["emotion"] for u in read_mse_adapter(file)] == ["xxx", "angry"]
    file = pickled(tmp_path / "mine_test.pkl", [entry("fru"), entry("exc")])
    assert [u.labels["emotion"] for u in read_mse_adapter(file, task="iemocap4")] == ["frustrated", "happy"]


def test_options_say_what_the_name_does_not(tmp_path: Path) -> None:
    file = pickled(tmp_path / "mine.pkl", [entry("joy")])
    found = list(read_mse_adapter(file, split="valid", task="meld", language="zh"))
    assert [(u.id, u.split, u.language) for u in found] == [("mine-valid-00000", "valid", "zh")]
    with pytest.raises(UserError, match=r"mine\.pkl: the name does not end in"):
        list(read_mse_adapter(file))
    with pytest.raises(UserError, match=r"mine\.pkl: the name does not begin with"):
        list(read_mse_adapter(file, split="test"))


def test_no_step_is_a_missing_modality(tmp_path: Path) -> None:
    found = next(iter(read_mse_adapter(pickled(tmp_path / "meld_test.pkl", [entry("joy", audio_len=np.int64(0))]))))
    assert found.audio_features is None


def without(name: str) -> dict[str, Any]:
    damaged = entry("joy")
    (damaged if name in damaged else damaged["features"]).pop(name)
    return damaged


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        *((without(name), f"no field {name}") for name in ("label", "features", "audio", "video", "text", "video_len")),
        (entry("happiness"), "field label: label 'happiness' is not in task 'meld'"),
        (entry("joy", audio_len=6), "field audio_len is 6, but audio has 5 steps"),
        (entry("joy", video_len=None), "field video_len is None"),
        ("text", "entry 1 is a str"),
        ({"features": [], "label": "joy"}, "field features is a list"),
    ],
)
def test_damaged_entries_name_file_place_and_field(tmp_path: Path, damaged: Any, message: str) -> None:
    file = pickled(tmp_path / "meld_train.pkl", [entry("joy"), damaged])
    with pytest.raises(UserError, match=r"meld_train\.pkl: entry 1") as caught:
        list(read_mse_adapter(file))
    assert message in str(caught.value)


def test_folders_that_are_not_one_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file \*_train\.pkl"):
        list(read_mse_adapter(tmp_path))
    pickled(tmp_path / "meld_test.pkl", [entry("joy")])
    pickled(tmp_path / "cherma_test.pkl", [entry("joy")])
    with pytest.raises(UserError, match="2 data sets"):
        list(read_mse_adapter(tmp_path))
    with pytest.raises(UserError, match=r"none_train\.pkl: no such file"):
        list(read_mse_adapter(tmp_path / "none_train.pkl", task="meld"))
    with pytest.raises(UserError, match="must be a list"):
        list(read_mse_adapter(pickled(tmp_path / "meld_test.pkl", {})))
