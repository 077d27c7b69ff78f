"""`llm-mer prepare` writes any public format as a store, and says one clear line when it cannot."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from shared_files import shared_data

from llm_mer.cli.main import main
from llm_mer.data.prepare import PrepareConfig, prepare
from llm_mer.data.sources import SOURCES
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    features = {"audio": np.ones((4, 3)), "video": np.ones((4, 2)), "text": "hi", "audio_len": 2, "video_len": 4}
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps([{"features": features, "label": "joy"}] * 3))
    return tmp_path / "mine.pkl"


def test_every_format_is_registered() -> None:
    formats = {"manifest", "mosi", "mosi_csv", "mmsa", "mse_adapter", "meld", "iemocap", "cped", "casia", "ravdess"}
    assert formats <= set(SOURCES)


def test_a_store_is_written_with_its_description(tmp_path: Path, pickled: Path) -> None:
    config = PrepareConfig("mse_adapter", str(pickled), str(tmp_path / "store"), split="train", task="meld")
    folder = prepare(config)
    store = UtteranceStore.open(folder)
    assert folder == tmp_path / "store"
    assert store.info.counts == {"train": 3}
    assert store.info.feature_sizes == {"audio": 3, "vision": 2}
    assert store.info.description == {"source": "mse_adapter", "path": str(pickled), "split": "train", "task": "meld"}
    assert store.split("train")[0].audio_features.shape == (2, 3)


def test_a_manifest_is_prepared_too(tmp_path: Path) -> None:
    manifest = tmp_path / "data.jsonl"
    manifest.write_text(json.dumps({"id": "a", "text": "hello", "emotion": "joy"}) + "\n", encoding="utf-8")
    assert UtteranceStore.open(prepare(PrepareConfig("manifest", str(manifest), str(tmp_path / "out")))).info.counts == {
        "test": 1
    }


def test_options_a_format_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="media: the format casia has no such option"):
        prepare(PrepareConfig("casia", "x", str(tmp_path / "store"), media="y"))
    with pytest.raises(UserError, match="neighbours is -1; it must be at least 0"):
        prepare(PrepareConfig("casia", "x", str(tmp_path / "store"), neighbours=-1))
    with pytest.raises(UserError, match="name is 'x'; it must be one of"):
        prepare(PrepareConfig("x", "x", str(tmp_path / "store")))


def test_command_line(tmp_path: Path, pickled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "--name", "mse_adapter", "--path", str(pickled), "--output", str(tmp_path / "store")]
    assert main(arguments) == 2
    assert "mine.pkl: the name does not end in" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert main([*arguments, "--split", "test", "--task", "meld"]) == 0
    assert str(tmp_path / "store") in capsys.readouterr().out
    assert main(["prepare", "meld"]) == 2
    assert "--path is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["mse_adapter", "PATH", "--split", "test", "--task", "meld"],
        ["--split", "test", "mse_adapter", "--task", "meld", "PATH"],
        ["--task", "meld", "--split", "test", "--path", "PATH", "--name", "mse_adapter"],
    ],
)
def test_name_and_path_by_place_or_by_option_are_written_to_the_formats_own_folder(
    tmp_path: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *(str(pickled) if word == "PATH" else word for word in words)]) == 0
    assert UtteranceStore.open(tmp_path / "data" / "mse_adapter").info.counts == {"test": 3}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("meld", {"train": 9989, "valid": 1109, "test": 2610}),
        ("casia", {"train": 600, "valid": 300, "test": 300}),
        ("ravdess", {"train": 60, "test": 60}),
        ("cped", {"valid": 11137, "test": 27438}),
    ],
)
def test_real_files(tmp_path: Path, name: str, counts: dict[str, int]) -> None:
    folder = prepare(PrepareConfig(name, str(shared_data(name)), str(tmp_path / "store")))
    assert UtteranceStore.open(folder).info.counts == counts
