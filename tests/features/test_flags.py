"""Recordings that can be read and are not sound are flagged at the thresholds that the docs state, and no others are."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.media_files import tone, write_mp4, write_wav

from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.flags import FLAGS, count_flags
from llm_mer.data.schema import SAMPLE_RATE, Frames, Utterance
from llm_mer.data.store import UtteranceStore
from llm_mer.data.validation.validate import ValidateConfig, validate
from llm_mer.errors import UserError
from llm_mer.features import extract as extraction
from llm_mer.features.acoustic import EXTRACTORS
from llm_mer.features.extract import ExtractConfig, extract
from llm_mer.features.extractor import Extractor
from llm_mer.features.flags import find_picture_flags, find_sound_flags, loudest_level
from llm_mer.features.media import read_audio, read_frames

FPS = 6.0


def amplitude(level: float) -> float:
    """Of a sine whose root mean square has this level in dBFS."""
    return float(10 ** (level / 20) * np.sqrt(2))


def sound(level: float, seconds: float = 1.0) -> np.ndarray:
    return tone(200, seconds, SAMPLE_RATE, amplitude(level))


@pytest.mark.parametrize("level", [-70.0, -60.5, -59.5, -50.5, -49.5, -20.0, -3.5])
def test_levels_are_those_of_the_loudest_tenth_of_a_second(level: float) -> None:
    samples = np.concatenate([np.zeros(SAMPLE_RATE, dtype=np.float32), sound(level, 0.2), sound(-90, 1.0)])
    assert loudest_level(samples) == pytest.approx(level, abs=0.01)
    expected = ["silence"] if level < -60 else ["low_level"] if level < -50 else []
    assert find_sound_flags(samples) == expected


def test_zeros_are_silence_however_few() -> None:
    assert loudest_level(np.zeros(100, dtype=np.float32)) == -np.inf
    assert find_sound_flags(np.zeros(SAMPLE_RATE, dtype=np.float32)) == ["silence"]


@pytest.mark.parametrize("seed", range(3))
def test_the_level_is_that_of_a_plain_loop_over_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples = (random.normal(size=random.integers(100, 20_000)) * random.uniform(1e-4, 0.3)).astype(np.float32)
    blocks = [samples[i : i + 1600].astype(np.float64) for i in range(0, len(samples), 1600)]
    assert loudest_level(samples) == pytest.approx(max(10 * np.log10((b * b).mean()) for b in blocks))


@pytest.mark.parametrize(("count", "flags"), [(16, []), (17, ["clipping"])])
@pytest.mark.parametrize("sign", [1, -1])
def test_clipping_is_more_than_a_thousandth_of_the_samples(count: int, sign: int, flags: list[str]) -> None:
    samples = sound(-20)
    samples[: 10 * count : 10] = 0.99 * sign
    assert find_sound_flags(samples) == flags


def test_a_voice_amplified_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    voice = np.convolve(random.normal(size=SAMPLE_RATE), np.hanning(20), "same")
    voice *= 0.3 / np.abs(voice).max()
    for gain, flags in ((1.0, []), (3.0, []), (12.0, ["clipping"])):
        path = write_wav(tmp_path / f"{gain}.wav", np.clip(voice * gain, -1, 1).astype(np.float32))
        assert find_sound_flags(read_audio(path)) == flags


def moving(count: int, seed: int = 0) -> np.ndarray:
    texture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return np.stack([np.roll(texture, i, axis=1) for i in range(count)])


def noisy(count: int, sigma: float, level: int = 120) -> np.ndarray:
    """A textured still with noise of a camera."""
    random = np.random.default_rng(1)
    still = moving(1)[0] * 0.3 + level
    return np.clip(still + random.normal(scale=sigma, size=(count, *still.shape)), 0, 255).astype(np.uint8)


PICTURES: dict[str, tuple[np.ndarray, list[str]]] = {
    "moving": (moving(12), []),
    "black": (np.zeros((12, 48, 64, 3), dtype=np.uint8), ["black_pictures"]),
    "black with noise": (np.random.default_rng(2).integers(0, 20, (12, 48, 64, 3), dtype=np.uint8), ["black_pictures"]),
    "dark, not black": (moving(12) // 8 + 30, []),
    "one colour": (np.full((12, 48, 64, 3), (20, 160, 40), dtype=np.uint8), ["blank_pictures"]),
    "white with noise": (255 - np.random.default_rng(3).integers(0, 4, (12, 48, 64, 3), dtype=np.uint8), ["blank_pictures"]),
    "still": (np.repeat(moving(1), 12, axis=0), ["frozen_pictures"]),
    "still of a camera": (noisy(12, 3.0), []),
    "half black": (np.concatenate([np.zeros_like(moving(6)), moving(6)]), ["black_pictures"]),
    "less than half black": (np.concatenate([np.zeros_like(moving(5)), moving(7)]), []),
    "half frozen": (np.concatenate([moving(6), np.repeat(moving(1), 7, axis=0)]), ["frozen_pictures"]),
    "less than half frozen": (np.concatenate([moving(9), np.repeat(moving(1), 7, axis=0)]), []),
    "slides of half a second": (np.repeat(moving(6), 3, axis=0), []),
    "one picture": (moving(1), []),
    "two alike": (np.repeat(moving(1), 2, axis=0), ["frozen_pictures"]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str) -> None:
    pixels, flags = PICTURES[name]
    assert find_picture_flags(Frames(pixels, FPS)) == flags


@pytest.mark.parametrize(("rate", "flags"), [(2, []), (25, [])])
def test_pictures_that_are_repeated_for_their_slow_rate_are_not_frozen(tmp_path: Path, rate: int, flags: list[str]) -> None:
    pixels = moving(2 * rate)
    path = write_mp4(tmp_path / "slow.mp4", pixels, [i / rate for i in range(len(pixels))])
    assert find_picture_flags(read_frames(path, FPS)) == flags


# --- with the utterance -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("recordings")
    good = sound(-20) + np.random.default_rng(0).normal(scale=0.02, size=SAMPLE_RATE)
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "good": (good, moving(25)),
        "silent": (np.zeros(SAMPLE_RATE), moving(25, 1)),
        "loud": (np.clip(good * 30, -1, 1), moving(25, 2)),
        "dark": (good[::-1], np.zeros((25, 48, 64, 3), dtype=np.uint8)),
    }
    found = []
    for name, (samples, pixels) in made.items():
        path = str(write_mp4(folder / f"{name}.mp4", pixels, samples=samples.astype(np.float32)))
        split = "test" if name == "dark" else "train"
        found.append(Utterance(name, split, "en", f"the words of {name}", path, path, labels={"emotion": "joy"}))
    return found


class LoudestSample:
    """In the place of acoustic descriptors, which take seconds to load: one step a tenth of a second."""

    def __init__(self, rate: float) -> None:
        self.names = ["loudest"]

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        return np.abs(samples[: len(samples) // 1600 * 1600]).reshape(-1, 1600).max(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def store(recordings: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def run(tasks: list[tuple[Utterance, Path]], settings: FeatureSettings, workers: int, bar: Any) -> None:
        extractor = Extractor(settings)
        for utterance, part in tasks:
            extraction._save_part(part, extractor(utterance))

    folder = tmp_path_factory.mktemp("flagged") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_extract_all", run)
        patch.setitem(EXTRACTORS, "librosa", LoudestSample)
        return extract(ExtractConfig(manifest="m.jsonl", output=str(folder), audio="librosa"), recordings, progress=False)


EXPECTED = {"good": (), "silent": ("silence",), "loud": ("clipping",), "dark": ("black_pictures",)}


def test_flags_stand_in_the_store_and_validate_names_them(store: Path) -> None:
    opened = UtteranceStore.open(store)
    assert {u.id: u.flags for split in opened.info.counts for u in opened.split(split)} == EXPECTED
    found = {f.check: (f.severity, f.split, f.first) for f in validate(ValidateConfig(str(store))).findings}
    assert found["silence"] == ("warning", "train", ["silent"])
    assert found["clipping"] == ("warning", "train", ["loud"])
    assert found["black_pictures"] == ("warning", "test", ["dark"])


def test_extraction_counts_flags_and_clips_longer_than_a_training_reads(
    recordings: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(tasks: list[tuple[Utterance, Path]], *_: Any) -> None:
        for number, (_, part) in enumerate(tasks):
            features = {"audio": np.ones((401 + number, 1), dtype=np.float32)} if number else {}
            extraction._save_part(part, extraction.Extracted(features, [], ["silence"] if number == 1 else []))

    monkeypatch.setattr(extraction, "_extract_all", run)
    monkeypatch.setitem(EXTRACTORS, "librosa", LoudestSample)
    with caplog.at_level(logging.WARNING, "llm_mer"):
        extract(ExtractConfig(manifest="m.jsonl", output=str(tmp_path / "s"), audio="librosa"), recordings, progress=False)
    told = [record.getMessage() for record in caplog.records]
    assert f"flags of 1 of 4 utterances: silence 1; `llm-mer validate {tmp_path / 's'}` names them" in told
    assert (
        "audio of 3 clips has more steps than the 400 that a training reads by default: say max_audio_steps: 404, or split "
        "the clips" in told
    )


def test_a_store_s_fingerprint_is_of_what_is_read_and_not_of_flags(store: Path, tmp_path: Path) -> None:
    from llm_mer.data.store import write_store

    opened = UtteranceStore.open(store)
    plain = [dataclasses.replace(u, flags=()) for split in opened.info.counts for u in opened.split(split)]
    again = UtteranceStore.open(write_store(plain, tmp_path / "plain"))
    assert again.info.fingerprint == opened.info.fingerprint


def test_a_store_from_before_there_were_flags_has_none(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_mer.data import store as module

    opened = UtteranceStore.open(store)
    table = opened.split("train")
    table._rows = table._rows.remove_columns("flags")
    table._verifier = None
    assert [u.flags for u in table] == [()] * 3
    assert module.DESCRIPTIVE_COLUMNS[-1] == "flags"


@pytest.mark.parametrize("flags", [("loud",), "silence", [3]])
def test_an_unknown_flag_is_refused(flags: Any) -> None:
    with pytest.raises(UserError, match=r"flags is .*; it must be a list of any of silence, low_level"):
        Utterance("u", text="words", flags=flags)


def test_flags_are_counted_by_utterance() -> None:
    assert count_flags([(), ("clipping", "black_pictures"), ("clipping",)]) == (
        "2 of 3 utterances: clipping 2, black_pictures 1"
    )
    assert count_flags([(), ()]) == ""


def test_the_docs_name_every_flag() -> None:
    text = (Path(__file__).parents[2] / "docs" / "your-own-clips.md").read_text(encoding="utf-8")
    assert all(f"`{flag}`" in text for flag in FLAGS)
