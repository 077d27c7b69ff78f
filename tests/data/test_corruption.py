"""Corruptions: stated rates, the same for the same seed and id, nested over amounts, and never an empty utterance."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.data.corruption import Corruption, DroppedFrames, FeatureCache, MissingSteps, ModelInputSpec
from llm_mer.data.dataset import MerDataset, build_context_vectors
from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.words import split_words
from llm_mer.errors import UserError
from llm_mer.features.corruption import CORRUPTIONS, AudioNoise, WordErrors
from llm_mer.prompting.tasks import get_task

EVERYTHING = ModelInputSpec(("text", "audio", "vision"))
AS_FEATURES = ModelInputSpec(("text", "audio", "vision"), "features")
EMOTION = get_task("emotion")
LETTERS = [f"w{i}" for i in range(300)]


def utterance(name: str, steps: int = 40, **fields: Any) -> Utterance:
    """Every step says which one it is."""
    numbered = np.repeat(np.arange(steps, dtype=np.float32)[:, None], 3, axis=1)
    given = {
        "id": name,
        "text": " ".join(f"{name}-{i}" for i in range(steps)),
        "text_features": numbered,
        "audio_features": numbered,
        "vision_features": numbered,
        "labels": {"emotion": "joy"},
    }
    return Utterance(**{**given, **fields})


def dataset(utterances: list[Utterance]) -> MerDataset:
    return MerDataset(utterances, [EMOTION])


def steps_of(features: np.ndarray | None) -> list[int]:
    return [] if features is None else [int(v) for v in features[:, 0]]


def edits(before: list[str], after: list[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(after) + 1))
    for i, one in enumerate(before, 1):
        last, row[0] = row[0], i
        for j, two in enumerate(after, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (one != two))
    return row[-1]


# --- missing steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_stated_rate_of_steps_and_words_is_missing(rate: float) -> None:
    lost: Counter[str] = Counter()
    for i in range(50):
        found = MissingSteps(rate, 0, EVERYTHING)(utterance(f"u{i}"))
        lost["text"] += 40 - len((found.text or "").split())
        lost["audio"] += 40 - len(steps_of(found.audio_features))
        lost["vision"] += 40 - len(steps_of(found.vision_features))
    for modality, count in lost.items():
        # Five standard deviations of a binomial of 2000 draws.
        assert abs(count / 2000 - rate) < 5 * np.sqrt(rate * (1 - rate) / 2000), modality


def test_modalities_lose_different_steps_and_the_rest_stays_in_order() -> None:
    found = MissingSteps(0.5, 0, EVERYTHING)(utterance("u"))
    audio, vision = steps_of(found.audio_features), steps_of(found.vision_features)
    assert audio == sorted(audio)
    assert audio != vision
    assert audio != [int(word.split("-")[1]) for word in str(found.text).split()]


def test_text_features_of_one_step_a_word_lose_the_words_steps() -> None:
    found = MissingSteps(0.5, 0, EVERYTHING)(utterance("u"))
    assert steps_of(found.text_features) == [int(word.split("-")[1]) for word in str(found.text).split()]


def test_the_draw_depends_on_seed_and_id_alone() -> None:
    corruption, members = MissingSteps(0.4, 3, EVERYTHING), [utterance(f"u{i}") for i in range(8)]
    in_order = {u.id: corruption(u).text for u in members}
    random.Random(0).shuffle(members)
    assert {u.id: corruption(u).text for u in members} == in_order
    assert MissingSteps(0.4, 4, EVERYTHING)(utterance("u0")).text != in_order["u0"]


def test_what_is_missing_at_a_low_rate_is_missing_at_a_higher_one() -> None:
    kept = [set(steps_of(MissingSteps(rate, 0, EVERYTHING)(utterance("u")).audio_features)) for rate in (0.1, 0.4, 0.8)]
    assert kept[2] < kept[1] < kept[0]


def test_a_modality_without_a_step_left_is_missing_and_an_utterance_keeps_the_last_one_read() -> None:
    found = MissingSteps(1.0, 0, EVERYTHING)(utterance("u"))
    left = {name for name in ("text", "audio_features", "vision_features") if getattr(found, name) is not None}
    assert len(left) == 1
    alone = MissingSteps(1.0, 0, ModelInputSpec(("audio",)))(utterance("u"))
    assert (alone.text, alone.vision_features) == (None, None)
    assert len(steps_of(alone.audio_features)) == 1
    features = MissingSteps(1.0, 0, ModelInputSpec(("text",), "features"))(utterance("u", text="one two"))
    assert (features.text, len(steps_of(features.text_features))) == (None, 1)


def test_the_step_kept_at_rate_one_is_the_one_kept_longest() -> None:
    last = steps_of(MissingSteps(1.0, 0, ModelInputSpec(("audio",)))(utterance("u")).audio_features)
    rates = np.linspace(0.5, 1.0, 200)
    smallest = min(
        (k for r in rates if (k := steps_of(MissingSteps(r, 0, ModelInputSpec(("audio",)))(utterance("u")).audio_features))),
        key=len,
    )
    assert last == smallest


def test_chinese_loses_characters_and_stays_chinese() -> None:
    text = "今天天气很好，我们去公园吧。" * 5
    found = MissingSteps(0.5, 0, EVERYTHING)(utterance("u", text=text, language="zh"))
    assert " " not in str(found.text)
    assert 15 < len(split_words(str(found.text), "zh")) < 45


def test_a_history_shows_the_damaged_texts_and_context_vectors_come_from_damaged_steps() -> None:
    members = [utterance(f"u{i}", dialogue_id="d", turn=i, speaker="A") for i in range(4)]
    damaged = dataset(members).corrupted(MissingSteps(0.5, 0, EVERYTHING))
    assert [text for _, text in damaged.history(3, 3)] == [damaged.utterance(i).text for i in range(3)]
    assert damaged.utterance(0).text != members[0].text
    vectors = build_context_vectors(damaged, lambda _, x: x, None, ("audio",)).vectors["audio"]
    expected = [np.mean(steps_of(damaged.utterance(i).audio_features)) for i in range(4)]
    assert vectors[:, 0] == pytest.approx(expected)


# --- dropped frames ---------------------------------------------------------------------------------------------------


def test_dropped_frames_take_vision_alone_and_all_of_it_at_rate_one() -> None:
    before = utterance("u")
    half, none = (DroppedFrames(rate, 0, EVERYTHING)(before) for rate in (0.5, 1.0))
    assert 8 < len(steps_of(half.vision_features)) < 32
    assert (half.text, steps_of(half.audio_features)) == (before.text, steps_of(before.audio_features))
    assert none.vision_features is None
    assert len(steps_of(DroppedFrames(1.0, 0, ModelInputSpec(("vision",)))(before).vision_features)) == 1


@pytest.mark.parametrize(("features", "message"), [(np.ones((1, 3), np.float32), "T=1"), (None, "no utterance has vision")])
def test_frames_of_an_utterance_level_feature_cannot_be_dropped(features: np.ndarray | None, message: str) -> None:
    data = dataset([utterance(f"u{i}", vision_features=features) for i in range(3)])
    with pytest.raises(UserError, match=message):
        DroppedFrames.build(0.5, 0, data, EVERYTHING)


# --- word errors ------------------------------------------------------------------------------------------------------


def spoken(count: int = 40, language: str = "en") -> list[Utterance]:
    generator = np.random.default_rng(0)
    between = " " if language == "en" else ""
    words = LETTERS if language == "en" else [chr(0x4E00 + i) for i in range(300)]
    return [
        utterance(f"{language}{i}", language=language, text=between.join(words[j] for j in generator.integers(0, 300, 30)))
        for i in range(count)
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_word_error_rate_is_the_stated_one(rate: float, language: str) -> None:
    members = spoken(language=language)
    corruption = WordErrors.build(rate, 0, dataset(members), EVERYTHING)
    wrong = words = 0
    for member in members:
        before, after = (split_words(str(u.text), language) for u in (member, corruption(member)))
        wrong, words = wrong + edits(before, after), words + len(before)
    # The best alignment can only be shorter; five standard deviations on the other side.
    assert rate - 0.03 - 5 * np.sqrt(rate / words) < wrong / words < rate + 5 * np.sqrt(rate / words)


def test_new_words_come_from_the_other_transcripts_of_the_same_language() -> None:
    members = [*spoken(), *spoken(language="zh")]
    corruption = WordErrors.build(0.5, 0, dataset(members), EVERYTHING)
    for member in members:
        others = {
            w
            for u in members
            if u.language == member.language and u.id != member.id
            for w in split_words(str(u.text), u.language)
        }
        own = split_words(str(member.text), member.language)
        added = Counter(split_words(str(corruption(member).text), member.language)) - Counter(own)
        assert set(added) <= others


def test_substitutions_deletions_and_insertions_have_their_shares() -> None:
    members = [utterance(f"u{i}", text=" ".join(f"u{i}w{j}" for j in range(50))) for i in range(60)]
    corruption = WordErrors.build(1.0, 0, dataset(members), EVERYTHING)
    kept = length = 0
    for member in members:
        after = str(corruption(member).text).split()
        kept += sum(word.startswith(f"{member.id}w") for word in after)
        length += len(after)
    # At rate 1 a word stays only beside an insertion; what is neither kept nor added to was substituted or deleted.
    assert kept / 3000 == pytest.approx(0.1, abs=0.03)
    assert length / 3000 == pytest.approx(0.7 + 2 * 0.1, abs=0.04)


def test_a_transcript_keeps_a_word_and_one_language_with_one_word_is_refused() -> None:
    members = [utterance(f"u{i}", text=text) for i, text in enumerate(["yes", "no", "maybe"] * 30)]
    corruption = WordErrors.build(1.0, 0, dataset(members), EVERYTHING)
    assert all(corruption(member).text for member in members)
    with pytest.raises(UserError, match="no two different words"):
        WordErrors.build(0.5, 0, dataset([utterance("a", text="yes"), utterance("b", text="yes")]), EVERYTHING)


def test_text_that_is_read_as_features_is_encoded_again_or_refused() -> None:
    members = spoken(4)
    with pytest.raises(UserError, match="cannot be encoded"):
        WordErrors.build(0.5, 0, dataset(members), AS_FEATURES)
    made: list[str] = []

    def encode(text: str) -> np.ndarray:
        made.append(text)
        return np.full((len(text.split()), 3), 7, dtype=np.float32)

    plain = WordErrors.build(0.5, 0, dataset(members), EVERYTHING)
    assert isinstance(plain, WordErrors)
    found = dataclasses.replace(plain, input_spec=AS_FEATURES, encode=encode)(members[0])
    assert made == [found.text]
    assert found.text_features is not None
    assert found.text_features.shape == (len(str(found.text).split()), 3)


# --- noise ------------------------------------------------------------------------------------------------------------


def tone(path: Path, seconds: float = 1.0) -> Path:
    import wave

    times = np.arange(int(16_000 * seconds)) / 16_000
    samples = (0.1 * np.sin(2 * np.pi * 220 * times) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16_000)
        stream.writeframes(samples.tobytes())
    return path


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_the_noise_has_the_stated_ratio_to_the_clips_rms(decibels: float) -> None:
    clean = np.sin(np.arange(50_000) / 7).astype(np.float32)
    clean[25_000:] = 0  # a pause counts
    noise = AudioNoise(decibels, 0, EVERYTHING).add_noise(clean, utterance("u")) - clean
    ratio = 10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(noise.astype(np.float64) ** 2))
    assert ratio == pytest.approx(decibels, abs=0.15)
    assert abs(float(noise.mean())) < 5 * float(noise.std()) / np.sqrt(len(noise))
    silence = np.zeros(1000, dtype=np.float32)
    assert not AudioNoise(decibels, 0, EVERYTHING).add_noise(silence, utterance("u")).any()


def test_noisy_sound_becomes_features_by_the_checkpoints_own_settings_and_waits_in_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    pytest.importorskip("av")
    from llm_mer.features.extractor import Extractor
    from llm_mer.features.media import read_audio

    settings = FeatureSettings(audio="librosa", vision="none")
    path = str(tone(tmp_path / "a.wav"))
    extractor = Extractor(settings).audio
    assert extractor is not None
    clean = extractor(read_audio(path))
    before = utterance("u", audio=path, audio_features=clean)
    input_spec = ModelInputSpec(("audio",), features=settings, cache=FeatureCache(tmp_path / "cache"))
    corruption = AudioNoise.build(0.0, 0, dataset([before]), input_spec)
    assert isinstance(corruption, AudioNoise)
    corruption.prepare([before], 1)
    (kept,) = (tmp_path / "cache").glob("*.npy")
    found = corruption(before)
    expected = extractor(corruption.add_noise(read_audio(path), before))
    assert found.audio_features is not None
    assert np.array_equal(found.audio_features, expected)
    assert not np.allclose(found.audio_features, clean)
    faint = AudioNoise.build(400.0, 0, dataset([before]), dataclasses.replace(input_spec, cache=FeatureCache()))(before)
    assert np.array_equal(np.asarray(faint.audio_features), clean), "noise too faint for float32 leaves the store's features"
    np.save(kept, np.full((2, 2), 5, dtype=np.float32))
    assert corruption(before).audio_features is not None
    assert np.asarray(corruption(before).audio_features).max() == 5, "it was read from the cache"
    kept.write_bytes(b"cut off")
    assert np.array_equal(np.asarray(corruption(before).audio_features), expected)


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        (None, {}, "unknown extraction settings"),
        (FeatureSettings(audio="none"), {}, "unknown extraction settings"),
        (FeatureSettings(), {}, "but no audio file"),
        (FeatureSettings(), {"audio": "gone.wav"}, "gone.wav: no such file"),
    ],
)
def test_noise_needs_media_and_the_settings_of_their_features(
    settings: FeatureSettings | None, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        AudioNoise.build(10.0, 0, dataset([utterance("u1", **fields)]), ModelInputSpec(("audio",), features=settings))


# --- all kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind, cls in CORRUPTIONS.items() if cls.is_rate])
@pytest.mark.parametrize("amount", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_outside_its_range_is_refused(kind: str, amount: float) -> None:
    with pytest.raises(UserError, match=kind):
        CORRUPTIONS[kind].build(amount, 0, dataset([utterance("a"), utterance("b")]), EVERYTHING)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_a_missing_modality_stays_missing(kind: str) -> None:
    members = [utterance("a", text_features=None), utterance("b", text_features=None)]
    nothing = utterance("c", text=None, text_features=None, vision_features=None, audio=None)
    amount = 0.5
    corruption: Corruption
    if kind == "audio_snr":
        nothing = dataclasses.replace(nothing, audio_features=None, vision_features=np.ones((3, 2), np.float32))
        corruption = AudioNoise(amount, 0, EVERYTHING)
    else:
        corruption = CORRUPTIONS[kind].build(amount, 0, dataset(members), EVERYTHING)
    found = corruption(nothing)
    for name in ("text", "text_features", "audio_features", "vision_features"):
        if getattr(nothing, name) is None:
            assert getattr(found, name) is None, name
