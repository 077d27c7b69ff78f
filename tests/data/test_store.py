"""The store gives back exactly what was written, from the mapped file, and refuses what cannot be trained on by name."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm_mer.data.schema import Utterance
from llm_mer.data.store import STORE_FILE, SeenIds, UtteranceStore, write_store
from llm_mer.errors import UserError

FEATURES = ("text_features", "audio_features", "vision_features")


def utterance(name: str, seed: int = 0, **fields: object) -> Utterance:
    generator = np.random.default_rng(seed)
    values: dict[str, object] = {
        "id": name,
        "language": "en",
        "text": f"words of {name}",
        "audio_features": generator.normal(size=(4 + seed, 3)).astype(np.float32),
        "vision_features": generator.normal(size=(2 + seed, 5)).astype(np.float32),
        "labels": {"emotion": "joy", "sentiment": 1.5},
    }
    return Utterance(**{**values, **fields})  # type: ignore[arg-type]


def corpus() -> list[Utterance]:
    return [
        utterance("a", 0, dialogue_id="d", turn=0, speaker="Ana", tags=("conflict", "neutral_words")),
        utterance("b", 1, split="valid", language="zh", text="我很高兴，真的。😀", labels={"sentiment": -0.3}),
        utterance("c", 2, dialogue_id="d", turn=1, speaker="Bo", vision_features=None, audio="clips/c.wav"),
        utterance("d", 3, split="test", text=None, text_features=np.eye(3, 7, dtype=np.float32), labels={}),
        utterance("e", 4, text='line\nbreak "quotes" {braces}', audio_features=None, vision="e.mp4"),
    ]


def same(first: Utterance, second: Utterance) -> bool:
    for field in dataclasses.fields(Utterance):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in FEATURES and one is not None and other is not None:
            if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
                return False
        elif field.name in FEATURES:
            if one is not other:
                return False
        elif one != other:
            return False
    return True


def by_split(utterances: list[Utterance]) -> dict[str, list[Utterance]]:
    return {split: [u for u in utterances if u.split == split] for split in ("train", "valid", "test")}


# --- round trip -------------------------------------------------------------------------------------------------------


def test_every_field_of_every_utterance_comes_back_exactly(tmp_path: Path) -> None:
    store = UtteranceStore.open(write_store(corpus(), tmp_path / "store"))
    for split, expected in by_split(corpus()).items():
        found = list(store.split(split))
        assert len(found) == len(store.split(split)) == len(expected)
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_extreme_float32_values_keep_their_bits(tmp_path: Path) -> None:
    info = np.finfo(np.float32)
    values = np.array([[-0.0, info.tiny / 8, info.max, info.min, 1 / 3, info.eps]], dtype=np.float32)
    store = UtteranceStore.open(write_store([Utterance("a", language="en", audio_features=values)], tmp_path / "store"))
    found = store.split("train")[0].audio_features
    assert found is not None
    assert found.tobytes() == values.tobytes()


def test_double_precision_and_strided_features_are_stored_as_their_float32_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 8))[::2, ::-1]
    store = UtteranceStore.open(write_store([Utterance("a", language="en", audio_features=values)], tmp_path / "store"))
    found = store.split("train")[0].audio_features
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_columns_slices_and_negative_indices_agree_with_the_rows(tmp_path: Path) -> None:
    utterances = [utterance(f"u{i}", i % 3, turn=i, labels={"sentiment": i / 10}) for i in range(150)]
    table = UtteranceStore.open(write_store(utterances, tmp_path / "store")).split("train")
    assert table.column("id") == [u.id for u in table] == [u.id for u in utterances]
    assert table.column("labels") == [u.labels for u in utterances]
    assert table.column("turn") == list(range(150))
    assert table.column("speaker") == [None] * 150
    assert [u.id for u in table[3:9:2]] == ["u3", "u5", "u7"]
    assert table[-1].id == "u149"
    assert table[np.int64(70)].id == "u70"


def test_what_the_store_says_of_itself_comes_back(tmp_path: Path) -> None:
    names, description = {"audio": ["f0", "energy", "jitter"]}, {"features": {"rate": 16000}, "source": "测试"}
    store = UtteranceStore.open(write_store(corpus(), tmp_path / "store", names, description))
    assert store.info.counts == {"train": 3, "valid": 1, "test": 1}
    assert store.info.feature_sizes == {"text": 7, "audio": 3, "vision": 5}
    assert store.info.feature_names == names
    assert store.info.description == description


def test_a_modality_nobody_has_is_absent(tmp_path: Path) -> None:
    store = UtteranceStore.open(write_store([Utterance("a", text="only words")], tmp_path / "store"))
    assert store.info.feature_sizes == {}
    assert store.info.statistics == {}
    assert store.split("train")[0].audio_features is None


# --- memory -----------------------------------------------------------------------------------------------------------


def test_features_are_views_of_the_mapped_file_not_copies(tmp_path: Path) -> None:
    big = [
        Utterance(f"u{i}", language="en", audio_features=np.random.default_rng(i).normal(size=(2000, 64)).astype(np.float32))
        for i in range(8)
    ]
    table = UtteranceStore.open(write_store(big, tmp_path / "store")).split("train")
    before = pa.total_allocated_bytes()
    found = [table[i].audio_features for i in range(8)]
    assert pa.total_allocated_bytes() - before < big[0].audio_features.nbytes  # type: ignore[union-attr]
    again = [table[i].audio_features for i in range(8)]
    for one, other in zip(found, again, strict=True):
        assert one is not None
        assert other is not None
        assert np.shares_memory(one, other)
        assert not one.flags.owndata
        assert not one.flags.writeable


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_numpys_over_the_training_frames_only(tmp_path: Path) -> None:
    utterances = [utterance(f"t{i}", i) for i in range(5)]
    utterances += [utterance("v", 9, split="valid", audio_features=np.full((50, 3), 1e6, dtype=np.float32))]
    utterances += [utterance("s", 9, split="test", audio_features=np.full((50, 3), -1e6, dtype=np.float32))]
    store = UtteranceStore.open(write_store(utterances, tmp_path / "store"))
    for modality, column in (("audio", "audio_features"), ("vision", "vision_features")):
        frames = np.concatenate([getattr(u, column) for u in utterances if u.split == "train"]).astype(np.float64)
        np.testing.assert_allclose(store.info.statistics[modality].mean, frames.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(store.info.statistics[modality].std, frames.std(axis=0), rtol=1e-6)


def test_without_a_training_split_there_are_no_statistics(tmp_path: Path) -> None:
    store = UtteranceStore.open(write_store([utterance("a", split="test")], tmp_path / "store"))
    assert store.info.statistics == {}
    assert store.info.feature_sizes == {"audio": 3, "vision": 5}


# --- refusals ---------------------------------------------------------------------------------------------------------


def with_value(value: float) -> np.ndarray:
    features = np.zeros((3, 3))
    features[1, 2] = value
    return features


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (utterance("good"), ["good", "twice"]),
        (utterance("bad", split="dev"), ["bad", "split", "dev"]),
        (utterance("bad", language="fr"), ["bad", "language", "fr"]),
        (utterance("bad", audio_features=with_value(np.nan)), ["bad", "audio_features", "NaN"]),
        (utterance("bad", audio_features=with_value(-np.inf)), ["bad", "audio_features", "infinity"]),
        (utterance("bad", audio_features=with_value(1e300)), ["bad", "audio_features", "infinity"]),
        (utterance("bad", vision_features=np.zeros((3, 4))), ["bad", "vision_features", "4", "5"]),
        (utterance("bad", vision_features=np.zeros((0, 5))), ["bad", "vision_features", "(0, 5)"]),
        (utterance("bad", vision_features=np.zeros(5)), ["bad", "vision_features", "(5,)"]),
        (utterance("bad", text_features=np.zeros((2, 0))), ["bad", "text_features", "(2, 0)"]),
        (Utterance("bad", language="en", audio="a.wav", labels={"emotion": "joy"}), ["bad", "modality"]),
    ],
    ids=[
        "duplicate id",
        "unknown split",
        "unknown language",
        "nan",
        "infinity",
        "beyond float32",
        "size mismatch",
        "no step",
        "one dimension",
        "no feature",
        "no modality",
    ],
)
def test_a_refused_utterance_is_named_with_its_field(tmp_path: Path, bad: Utterance, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        write_store([utterance("good"), bad], tmp_path / "store")
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_store_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no utterance"):
        write_store([], tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a store"):
        write_store(corpus(), folder)
    assert (folder / "chapter.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_opening_what_is_no_store_and_asking_for_a_split_it_lacks_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*store\.json"):
        UtteranceStore.open(tmp_path / "nowhere")
    store = UtteranceStore.open(write_store([utterance("a")], tmp_path / "store"))
    with pytest.raises(UserError, match="no split 'test'; it holds train"):
        store.split("test")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "colour": 2, "statistics": {}}', "\udcff"]
)
def test_a_damaged_description_is_one_error_naming_the_file(text: str, tmp_path: Path) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    (folder / STORE_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"store\.json: damaged"):
        UtteranceStore.open(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_off_arrow_file_is_one_error_naming_the_file(share: float, tmp_path: Path) -> None:
    folder = write_store([utterance(f"u{i}", i) for i in range(200)], tmp_path / "store")
    path = folder / "train.arrow"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"train\.arrow: damaged or cut off"):
        UtteranceStore.open(folder).split("train")


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    entry = json.loads((folder / STORE_FILE).read_text())
    (folder / STORE_FILE).write_text(json.dumps({**entry, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        UtteranceStore.open(folder)


# --- replacing --------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupted_write_leaves_the_old_store_intact(tmp_path: Path, error: type[BaseException]) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    before = contents(folder)

    def interrupted() -> Iterator[Utterance]:
        for i in range(100):
            yield utterance(f"new{i}", i % 4)
        raise error

    with pytest.raises(error):
        write_store(interrupted(), folder)
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert [u.id for u in UtteranceStore.open(folder).split("train")] == ["a", "c", "e"]


def test_a_failure_while_the_stores_are_exchanged_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    before = contents(folder)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (self / STORE_FILE).is_file() and "new" in (self / STORE_FILE).read_text():
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        write_store([utterance("z")], folder, description={"kind": "new"})
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_finished_write_replaces_the_old_store_whole(tmp_path: Path) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    old = UtteranceStore.open(folder).split("valid")
    write_store([utterance("z", 1)], folder)
    assert UtteranceStore.open(folder).info.counts == {"train": 1}
    assert sorted(p.name for p in folder.iterdir()) == [STORE_FILE, "train.arrow"]
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert same(old[0], corpus()[1])  # a reader of the old store keeps what it mapped


def test_files_of_others_in_a_stores_folder_stay_when_it_is_written_again(tmp_path: Path) -> None:
    folder = write_store(corpus(), tmp_path / "store")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("years of work")
    (folder / "labels.csv").write_text("mine")
    write_store([utterance("z", 1)], folder)
    assert sorted(p.name for p in folder.iterdir()) == ["labels.csv", "notes", STORE_FILE, "train.arrow"]
    assert (folder / "labels.csv").read_text() == "mine"
    assert (folder / "notes" / "thesis.txt").read_text() == "years of work"


KILLED = """
import os, signal
from pathlib import Path
import numpy as np
from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store
def utterances():
    for i in range(200):
        yield Utterance(str(i), text="x", audio_features=np.ones((100, 50), np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
write_store(utterances(), Path("store"))
"""


def test_what_a_killed_writer_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.arrow")) > 1_000_000
    write_store(corpus(), tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_empty_folder_may_be_written_to_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert UtteranceStore.open(write_store(corpus(), tmp_path / "empty")).info.counts["train"] == 3
    assert UtteranceStore.open(write_store(corpus(), tmp_path / "deep" / "down")).info.counts["train"] == 3


# --- fingerprint ------------------------------------------------------------------------------------------------------


def fingerprint(utterances: list[Utterance], tmp_path: Path) -> str:
    folder = write_store(utterances, tmp_path / "fingerprinted")
    value = UtteranceStore.open(folder).info.fingerprint
    shutil.rmtree(folder)
    return value


def nudged(features: np.ndarray) -> np.ndarray:
    changed = features.copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.float32(np.inf))
    return changed


def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    assert fingerprint(corpus(), tmp_path) == fingerprint(corpus(), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"text": "other words"},
        {"text": None},
        {"language": "zh"},
        {"split": "valid"},
        {"labels": {"emotion": "joy", "sentiment": 1.6}},
        {"labels": {"emotion": "anger", "sentiment": 1.5}},
        {"audio_features": nudged(utterance("a").audio_features)},  # type: ignore[arg-type]
        {"audio_features": utterance("a").audio_features.reshape(3, 4)[:, :3]},  # type: ignore[union-attr]
        {"vision_features": None},
    ],
    ids=["id", "text", "no text", "language", "split", "score", "class", "one bit of one value", "steps", "modality"],
)
def test_the_fingerprint_changes_when_a_value_changes(tmp_path: Path, change: dict[str, object]) -> None:
    changed = [utterance("a", **change), utterance("b", 1)]  # type: ignore[arg-type]
    assert fingerprint(changed, tmp_path) != fingerprint([utterance("a"), utterance("b", 1)], tmp_path)


@pytest.mark.parametrize("recent", [1, 7, 1000])
def test_ids_are_remembered_as_a_set_would_before_and_after_they_are_sorted_in(recent: int) -> None:
    seen, reference = SeenIds(recent), set()
    for number in np.random.default_rng(0).integers(0, 150, size=400):
        identifier = f"视频{number}"
        assert seen.add(identifier) is (identifier not in reference)
        reference.add(identifier)
