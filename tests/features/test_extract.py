"""Extraction gives the same store however it is run, goes on where it stopped, and names every file it could not use."""

import dataclasses
import json
import logging
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from media_files import clip, tone, work_or_die, write_mp4, write_wav

from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import write_manifest
from llm_mer.data.store import QUARANTINE_FILE, UtteranceStore
from llm_mer.errors import UserError
from llm_mer.features import extract as module
from llm_mer.features.extract import ExtractConfig, extract, extract_manifest
from llm_mer.features.extractor import Extractor, extract_one
from llm_mer.features.media import MediaError, read_audio, read_frames

GOOD = 6
SPLITS = ("train", "train", "train", "valid", "test", "test")
REASONS = {
    "gone": {"no_file"},
    "empty": {"empty_file"},
    "text": {"not_media"},
    "cut": {"corrupt"},
    "silent": {"no_audio_track"},
    "short": {"too_short"},
}
LIGHT = {"audio": "none", "vision": "hog_flow"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("clips")
    paths = [str(clip(folder / f"{i}.mp4", i, 0.4 + 0.1 * i)) for i in range(GOOD)]
    return [
        Utterance(f"u{i}", SPLITS[i], "en", f"words {i}", path, path, labels={"emotion": "joy"})
        for i, path in enumerate(paths)
    ]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Both modalities of each are bad, save that ``silent`` has pictures and ``short`` has no video at all."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no film\n" * 100)
    cut = clip(folder / "cut.mp4", 1, index_first=True)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_mp4(folder / "silent.mp4", np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8))
    write_wav(folder / "short.wav", tone(300, 0.05, 16_000))
    found = [Utterance(n, text=f"words of {n}", audio=f"{folder}/{n}.mp4", vision=f"{folder}/{n}.mp4") for n in REASONS]
    found[-1] = Utterance("short", language="en", text=None, audio=f"{folder}/short.wav")
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Extraction in this process, which saves starting workers; gives the ids of the utterances worked on."""
    worked: list[str] = []

    def run(tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any) -> None:
        extractor = Extractor(settings)
        for utterance, part in tasks:
            worked.append(utterance.id)
            module._save_part(part, extractor(utterance))

    monkeypatch.setattr(module, "_extract_all", run)
    return worked


def config(output: Path, **options: Any) -> ExtractConfig:
    return ExtractConfig(manifest="clips.jsonl", output=str(output), **options)


def run(output: Path, utterances: list[Utterance], **options: Any) -> UtteranceStore:
    return UtteranceStore.open(extract(config(output, **options), utterances, progress=False))


def stored(store: UtteranceStore) -> dict[str, Utterance]:
    return {u.id: u for split in store.info.counts for u in store.split(split)}


def quarantine(store: UtteranceStore) -> list[dict[str, str]]:
    return [json.loads(line) for line in (store.folder / QUARANTINE_FILE).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def one_worker(good: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> UtteranceStore:
    return run(tmp_path_factory.mktemp("one") / "store", good, workers=1)


# --- a whole manifest -------------------------------------------------------------------------------------------------


def test_one_and_two_workers_write_the_same_store(good: list[Utterance], one_worker: UtteranceStore, tmp_path: Path) -> None:
    two = run(tmp_path / "store", good, workers=2)
    assert two.info.fingerprint == one_worker.info.fingerprint
    assert two.info.to_dict() == one_worker.info.to_dict()
    assert (two.folder / QUARANTINE_FILE).read_text() == (one_worker.folder / QUARANTINE_FILE).read_text() == ""


def test_the_store_holds_every_utterance_with_both_modalities(good: list[Utterance], one_worker: UtteranceStore) -> None:
    assert one_worker.info.counts == {"train": 3, "valid": 1, "test": 2}
    assert one_worker.info.feature_sizes == {"audio": 25, "vision": 396}
    assert {m: len(n) for m, n in one_worker.info.feature_names.items()} == {"audio": 25, "vision": 396}
    assert list(stored(one_worker)) == [u.id for u in good]
    for before, after in zip(good, stored(one_worker).values(), strict=True):
        bare = dataclasses.replace(after, audio_features=None, vision_features=None)
        assert bare == before
        seconds = len(read_audio(before.audio)) / 16_000
        assert len(after.audio_features) == pytest.approx(12.5 * seconds, abs=2)
        assert len(after.vision_features) == len(read_frames(before.vision, 6.0).pixels)


def test_the_store_says_how_its_features_were_made(one_worker: UtteranceStore) -> None:
    description = one_worker.info.description
    assert description["source"] == "clips.jsonl"
    assert FeatureSettings.from_dict(description["features"]) == FeatureSettings()


def test_extract_one_gives_the_features_of_extract(good: list[Utterance], one_worker: UtteranceStore) -> None:
    for before, after in zip(good, stored(one_worker).values(), strict=True):
        found = extract_one(before, FeatureSettings())
        np.testing.assert_array_equal(found.audio_features, after.audio_features)
        np.testing.assert_array_equal(found.vision_features, after.vision_features)
        assert (found.id, found.text, found.labels) == (before.id, before.text, before.labels)


def test_nothing_but_the_store_is_left(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    run(tmp_path / "store", good, **LIGHT)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_files_of_others_beside_and_in_the_store_stay(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    run(tmp_path / "store", good, **LIGHT)
    (tmp_path / "store.parts").mkdir()
    for place in ("store/notes.txt", "store.parts/notes.txt", "store.parts/features.npz"):
        (tmp_path / place).write_text("mine")
    run(tmp_path / "store", good[:2], **LIGHT)
    assert sorted(p.name for p in (tmp_path / "store.parts").iterdir()) == ["features.npz", "notes.txt"]
    assert (tmp_path / "store" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "store.parts"]


def test_a_manifest_on_disk_is_extracted(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    manifest = write_manifest(good, tmp_path / "mine.jsonl")
    folder = extract_manifest(ExtractConfig(manifest=str(manifest), output=str(tmp_path / "store"), **LIGHT))
    store = UtteranceStore.open(folder)
    assert list(stored(store)) == [u.id for u in good]
    assert store.info.description["source"] == "mine.jsonl"


def test_the_files_of_a_public_data_set_are_extracted_without_a_manifest(here: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "meld"
    (folder / "train").mkdir(parents=True)
    head = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    for name in ("train_sent_emo.csv", "dev_sent_emo.csv", "test_sent_emo.csv"):
        (folder / name).write_text(head + "Hello,Ross,joy,positive,0,0\n", encoding="utf-8")
    clip(folder / "train" / "dia0_utt0.mp4", 0, 0.4)
    config = ExtractConfig(manifest=f"meld:{folder}", output=str(tmp_path / "store"), workers=1, **LIGHT)
    store = UtteranceStore.open(extract_manifest(config))
    (utterance,) = store.split("train")
    assert utterance.speaker == "Ross"
    assert utterance.labels["emotion"] == "joy"
    assert utterance.vision_features is not None
    assert store.split("test")[0].vision_features is None
    config.labels = ["emotion"]
    with pytest.raises(UserError, match="labels: meld has its own"):
        extract_manifest(config)


def test_a_modality_that_is_none_is_not_extracted(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    store = run(tmp_path / "store", good[:2], audio="egemaps", vision="none")
    assert store.info.feature_sizes == {"audio": 25}
    assert all(u.vision_features is None for u in stored(store).values())


def test_the_licence_of_opensmile_is_told_where_it_is_used(
    good: list[Utterance], here: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "a", good[:1], **LIGHT)
        assert "audEERING" not in caplog.text
        run(tmp_path / "b", good[:1], vision="none")
        assert "audEERING" in caplog.text


# --- bad media --------------------------------------------------------------------------------------------------------


def test_bad_media_are_dropped_and_each_named_with_its_reason(
    good: list[Utterance], bad: list[Utterance], here: list[str], one_worker: UtteranceStore, tmp_path: Path, caplog: Any
) -> None:
    mixed = [u for pair in zip(good, bad, strict=True) for u in pair]
    with caplog.at_level(logging.WARNING):
        store = run(tmp_path / "store", mixed)
    assert store.info.fingerprint == one_worker.info.fingerprint  # what is good is untouched by what is not
    entries = quarantine(store)
    paths = {u.id: u.audio for u in bad}
    for entry in entries:
        assert sorted(entry) == ["field", "file", "id", "message", "reason"]
        assert entry["file"] == paths[entry["id"]]
        assert entry["message"].startswith(entry["file"])
    assert {name: {e["reason"] for e in entries if e["id"] == name} for name in REASONS} == REASONS
    fields = {name: [e["field"] for e in entries if e["id"] == name] for name in REASONS}
    assert (fields.pop("silent"), fields.pop("short")) == (["audio"], ["audio"])
    assert all(found == ["audio", "vision"] for found in fields.values())
    assert f"{len(entries)} files could not be used" in caplog.text
    assert str(store.folder / QUARANTINE_FILE) in caplog.text


def test_bad_media_can_be_kept_as_missing_modalities(
    good: list[Utterance], bad: list[Utterance], here: list[str], tmp_path: Path
) -> None:
    store = run(tmp_path / "store", [*good, *bad], on_bad_media="missing")
    kept = stored(store)
    assert set(kept) == {u.id for u in (*good, *bad)} - {"short"}  # short has nothing else
    for name in ("gone", "empty", "text", "cut"):
        assert kept[name].audio_features is None
        assert kept[name].vision_features is None
        assert kept[name].text == f"words of {name}"
    assert kept["silent"].audio_features is None
    assert kept["silent"].vision_features is not None
    assert {e["id"] for e in quarantine(store)} == set(REASONS)


def test_nothing_but_bad_media_is_an_error_that_names_the_first(
    bad: list[Utterance], here: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"files were rejected, the first: .*gone\.mp4: no such file"):
        run(tmp_path / "store", bad)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", sorted(REASONS))
def test_extract_one_raises_for_a_bad_file_and_names_it(bad: list[Utterance], name: str) -> None:
    utterance = next(u for u in bad if u.id == name)
    with pytest.raises(UserError) as caught:
        extract_one(utterance, FeatureSettings())
    assert f"utterance {name!r}: {utterance.audio}: " in str(caught.value)


@pytest.mark.parametrize(
    ("result", "reason", "message"),
    [
        (ValueError("no face in any frame"), "descriptor_failed", "no face in any frame"),
        (UserError("no face in any frame"), "descriptor_failed", "no face in any frame"),
        (FloatingPointError("overflow"), "descriptor_failed", "overflow"),
        (cv2.error("resize failed"), "descriptor_failed", "resize failed"),
        (IndexError("no such row"), "descriptor_failed", "no such row"),
        (OSError("cannot read"), "descriptor_failed", "cannot read"),
        (TypeError("not a picture"), "descriptor_failed", "not a picture"),
        (MemoryError(), "descriptor_failed", "MemoryError"),
        (np.zeros((0, 3)), "descriptor_failed", r"shape (0, 3)"),
        (MediaError("x.mp4", "no_frames"), "no_frames", "x.mp4: the video track holds no frames"),
        (np.full((2, 3), np.nan), "not_finite", "features hold NaN"),
    ],
)
def test_a_descriptor_that_fails_on_a_clip_rejects_that_file_only(
    good: list[Utterance], result: Any, reason: str, message: str
) -> None:
    extractor = Extractor(FeatureSettings())

    def fail(frames: Any) -> np.ndarray:
        if isinstance(result, Exception):
            raise result
        return result

    extractor.vision = fail  # type: ignore[assignment]
    found = extractor(good[0])
    assert list(found.features) == ["audio"]
    assert [(r.id, r.field, r.file, r.reason) for r in found.rejected] == [("u0", "vision", good[0].vision, reason)]
    assert message in found.rejected[0].message


def test_a_text_encoder_that_fails_rejects_that_transcript_only(good: list[Utterance]) -> None:
    extractor = Extractor(FeatureSettings(vision="none"))

    def fail(text: str) -> np.ndarray:
        raise IndexError("index out of range in self")

    extractor.text = fail
    found = extractor(good[0])
    assert list(found.features) == ["audio"]
    (rejected,) = found.rejected
    assert (rejected.field, rejected.file, rejected.reason) == ("text", "transcript", "descriptor_failed")
    assert rejected.message == "transcript: index out of range in self"


# --- going on ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_where_it_stopped(
    good: list[Utterance], one_worker: UtteranceStore, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = module._save_part, []

    def interrupted(path: Path, found: Any) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, found)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "store", good)
    assert not (tmp_path / "store").exists()
    here.clear()
    store = run(tmp_path / "store", good)
    assert here == [u.id for u in good[3:]]
    assert store.info.fingerprint == one_worker.info.fingerprint
    assert not (tmp_path / "store.parts").exists()


def test_a_half_written_part_is_done_again(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    settings = config(tmp_path / "store", **LIGHT).settings
    part = module._part_path(tmp_path / "store.parts", good[0], settings)
    part.parent.mkdir()
    part.with_suffix(".123.tmp").write_bytes(b"half")
    assert set(stored(run(tmp_path / "store", good[:2], **LIGHT))) == {"u0", "u1"}
    assert here == ["u0", "u1"]


def test_a_changed_setting_text_or_file_is_done_again(good: list[Utterance], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(Path(good[0].audio).read_bytes())
    utterance = Utterance("a", text="words", audio=str(path), vision=str(path))
    places = {module._part_path(tmp_path, utterance, FeatureSettings())}
    places.add(module._part_path(tmp_path, utterance, FeatureSettings(vision_fps=7.0)))
    places.add(module._part_path(tmp_path, dataclasses.replace(utterance, text="other"), FeatureSettings()))
    places.add(module._part_path(tmp_path, dataclasses.replace(utterance, id="b"), FeatureSettings()))
    labelled = dataclasses.replace(utterance, labels={"emotion": "joy"}, split="test")
    assert module._part_path(tmp_path, labelled, FeatureSettings()) in places  # labels do not change features
    path.write_bytes(path.read_bytes() + b"\0")
    places.add(module._part_path(tmp_path, utterance, FeatureSettings()))
    path.unlink()
    places.add(module._part_path(tmp_path, utterance, FeatureSettings()))
    assert len(places) == 6


def test_a_part_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    features = {"audio": np.arange(6, dtype=np.float32).reshape(2, 3), "text": np.ones((1, 2), np.float32)}
    rejected = [module.Rejected("u", "vision", "文件.mp4", "corrupt", "文件.mp4: decoding failed")]
    module._save_part(tmp_path / "a.npz", module.Extracted(features, rejected))
    found = module.load_part(tmp_path / "a.npz")
    assert found.rejected == rejected
    assert {name: values.tobytes() for name, values in found.features.items()} == {
        name: values.tobytes() for name, values in features.items()
    }


# --- workers that die -------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_takes_only_its_own_utterance_with_it(
    good: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_extract_one", work_or_die)
    deadly = dataclasses.replace(good[0], id="deadly")
    store = run(tmp_path / "store", [good[0], deadly, good[1]], workers=1, **LIGHT)
    assert set(stored(store)) == {"u0", "u1"}
    (entry,) = quarantine(store)
    assert (entry["id"], entry["reason"], entry["file"]) == ("deadly", "crashed", good[0].vision)
    assert entry["message"] == f"{good[0].vision}: the decoder crashed on it"


class BreakingPool:
    """A pool in this process that works until it is told to break, on submission or in work; counts are shared."""

    made: list[tuple[int, list[str]]]
    break_at_submission: set[int]
    deadly: set[str]

    def __init__(self, workers: int, *_: Any) -> None:
        self.ids: list[str] = []
        self.broken = False
        self.made.append((workers, self.ids))

    def __enter__(self) -> "BreakingPool":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Any, utterance: Utterance, part: Path) -> "Future[None]":
        if self.ids and len(self.made) == 1 and len(self.ids) in self.break_at_submission:
            raise BrokenProcessPool("a worker died")
        self.ids.append(utterance.id)
        future: Future[None] = Future()
        self.broken |= utterance.id in self.deadly
        if self.broken:
            future.set_exception(BrokenProcessPool("a worker died"))
        else:
            part.write_text(utterance.id)
            future.set_result(None)
        return future


def breaking(monkeypatch: pytest.MonkeyPatch, at_submission: set[int], deadly: set[str]) -> list[tuple[int, list[str]]]:
    made: list[tuple[int, list[str]]] = []
    for name, value in (("made", made), ("break_at_submission", at_submission), ("deadly", deadly)):
        monkeypatch.setattr(BreakingPool, name, value, raising=False)
    monkeypatch.setattr(module, "ProcessPoolExecutor", BreakingPool)
    return made


class Bar:
    done = 0

    def update(self, steps: int = 1) -> None:
        self.done += steps


def tasks_in(folder: Path, count: int) -> list[tuple[Utterance, Path]]:
    return [(Utterance(f"t{i}", vision=f"{i}.mp4"), folder / f"{i}.npz") for i in range(count)]


@pytest.mark.parametrize("at", [1, 2, 7, 39])
def test_a_pool_that_breaks_while_a_task_is_handed_over_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    breaking(monkeypatch, {at}, set())
    tasks, bar = tasks_in(tmp_path, 40), Bar()
    module._extract_all(tasks, FeatureSettings(), 2, bar)
    assert all(part.read_text() == utterance.id for utterance, part in tasks)
    assert bar.done == 40


def test_after_a_crash_only_what_was_in_work_is_retried_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = breaking(monkeypatch, set(), {"t3"})
    tasks, bar = tasks_in(tmp_path, 100), Bar()
    module._extract_all(tasks, FeatureSettings(), 4, bar)
    assert bar.done == 100
    rejected = {u.id: module.load_part(p).rejected for u, p in tasks if u.id == "t3"}
    assert [r.reason for r in rejected["t3"]] == ["crashed"]
    assert all(part.read_text() == utterance.id for utterance, part in tasks if utterance.id != "t3")
    alone = [name for workers, ids in made if workers == 1 for name in ids]
    assert "t3" in alone
    assert len(alone) <= 4 * module.TASKS_PER_WORKER + 1
    assert len(made[-1][1]) == 100 - 4 * module.TASKS_PER_WORKER
    assert made[-1][0] == 4  # the rest is done by all workers again


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio_rate": 0.0}, r"audio_rate is 0\.0; it must lie in \(0, 100\]"),
        ({"audio_rate": 100.5}, r"audio_rate is 100\.5"),
        ({"vision_fps": -1.0}, r"vision_fps is -1\.0; it must lie in \(0, 60\]"),
        ({"vision_fps": 61.0}, r"vision_fps is 61\.0"),
        ({"audio": "none", "vision": "none"}, "nothing to extract"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"on_bad_media": "ignore"}, "on_bad_media is 'ignore'; choose drop or missing"),
        ({"vision": "landmarks"}, "--landmark-model"),
        ({"face_model": "/nowhere/yunet.onnx"}, "--face-model /nowhere/yunet.onnx: no such file"),
        ({"audio": "/nowhere/wavlm"}, "/nowhere/wavlm"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(
    good: list[Utterance], here: list[str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "store", good, **options)
    assert here == []
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_occurs_twice_is_an_error(good: list[Utterance], here: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'u0' occurs twice"):
        run(tmp_path / "store", [good[0], good[1], good[0]], **LIGHT)


def test_settings_come_back_from_their_dictionary() -> None:
    settings = FeatureSettings(audio="librosa", vision_fps=4.0, face_model="a.onnx")
    assert FeatureSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert ExtractConfig(manifest="m", output="o", workers=3, audio="librosa").settings == FeatureSettings(audio="librosa")


def test_settings_of_another_version_are_refused_by_field() -> None:
    with pytest.raises(UserError, match=r"unknown fields \['pitch'\]"):
        FeatureSettings.from_dict({"audio": "librosa", "pitch": 3})


def test_labels_that_no_utterance_has_are_named_before_anything_is_extracted(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("id,text,arousal\na,hello,\nb,well,\n")
    with pytest.raises(UserError, match=r"labels: no utterance of .*clips\.csv has 'arousal'"):
        extract_manifest(
            ExtractConfig(manifest=str(path), output=str(tmp_path / "out"), audio="librosa", labels=["arousal"])
        )
    assert not (tmp_path / "out").exists()
