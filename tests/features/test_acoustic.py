"""Acoustic descriptors of tones and silence whose pitch and loudness are known."""

import sys

import numpy as np
import pytest

from llm_mer.data.schema import SAMPLE_RATE
from llm_mer.errors import UserError
from llm_mer.features.acoustic import EXTRACTORS, FRAME_RATE, AcousticExtractor, mean_pool

SIZES = {"egemaps": 25, "librosa": 43}
NAMES = sorted(SIZES)


def voiced(frequency: float, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    """Harmonics that fall off as a voice's do."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = sum(np.sin(2 * np.pi * frequency * k * t) / k for k in range(1, 15))
    return (level * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="module")
def extractors() -> dict[str, AcousticExtractor]:
    return {name: EXTRACTORS[name](12.5) for name in NAMES}


def column(extractor: AcousticExtractor, samples: np.ndarray, name: str) -> np.ndarray:
    return extractor(samples)[:, extractor.names.index(name)]


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [5.0, 12.5, 25.0, 33.0, 50.0, 100.0])
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 100, 163])
def test_pool_is_the_mean_over_consecutive_frames(rate: float, steps: int) -> None:
    frames = np.random.default_rng(steps).normal(size=(steps, 4)).astype(np.float32)
    width = round(FRAME_RATE / rate)
    expected = np.stack([frames[i : i + width].mean(axis=0) for i in range(0, steps, width)])
    found = mean_pool(frames, rate)
    assert found.dtype == np.float32
    assert len(found) == -(-steps // width)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_pool_at_the_frame_rate_changes_nothing() -> None:
    frames = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(mean_pool(frames, 100.0), frames)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate", [5.0, 12.5, 100.0])
def test_the_step_rate_is_what_was_asked_for(name: str, rate: float) -> None:
    extractor = EXTRACTORS[name](rate)
    features = extractor(voiced(200, 2.0))
    assert features.shape[1] == SIZES[name] == len(extractor.names) == len(set(extractor.names))
    assert features.dtype == np.float32
    assert len(features) == pytest.approx(2 * rate, abs=max(1, 0.05 * 2 * rate))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [0.1, 0.15, 1.0])
@pytest.mark.parametrize("kind", ["silence", "noise", "clipped"])
def test_silence_noise_and_very_short_sound_give_finite_features(extractors, name: str, seconds: float, kind: str) -> None:
    count = int(seconds * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)
    samples = {"silence": np.zeros(count, np.float32), "noise": noise, "clipped": np.sign(noise)}[kind]
    features = extractors[name](samples)
    assert features.shape[1] == SIZES[name]
    assert len(features) >= 1
    assert np.isfinite(features).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_call_does_not_depend_on_the_call_before(extractors, name: str) -> None:
    first = extractors[name](voiced(200))
    extractors[name](voiced(333, 0.4))
    np.testing.assert_array_equal(extractors[name](voiced(200)), first)


# --- what they measure ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency", [110.0, 220.0, 330.0])
def test_librosa_pitch_is_right_within_two_percent(extractors, frequency: float) -> None:
    octaves = column(extractors["librosa"], voiced(frequency), "f0_octaves")[1:-1]
    np.testing.assert_allclose(55 * 2**octaves, frequency, rtol=0.02)
    assert (column(extractors["librosa"], voiced(frequency), "voiced")[1:-1] == 1).all()


@pytest.mark.parametrize("frequency", [110.0, 220.0, 330.0])
def test_egemaps_pitch_is_right_within_two_percent(extractors, frequency: float) -> None:
    semitones = column(extractors["egemaps"], voiced(frequency), "F0semitoneFrom27.5Hz_sma3nz")[2:-2]
    np.testing.assert_allclose(27.5 * 2 ** (semitones / 12), frequency, rtol=0.02)


def test_librosa_silence_is_unvoiced_without_a_pitch(extractors) -> None:
    samples = np.concatenate([voiced(220), np.zeros(SAMPLE_RATE, np.float32)])
    for name in ("voiced", "f0_octaves"):
        values = column(extractors["librosa"], samples, name)
        assert (values[2:11] > 0).all()
        assert (values[15:] == 0).all()


@pytest.mark.parametrize(("name", "part"), [("egemaps", "Loudness_sma3"), ("librosa", "log_energy")])
def test_loudness_rises_with_amplitude(extractors, name: str, part: str) -> None:
    means = [column(extractors[name], voiced(220, level=level), part).mean() for level in (0.01, 0.05, 0.2, 0.8)]
    assert (np.diff(means) > 0.1).all()


def test_log_energy_follows_the_amplitude_by_its_logarithm(extractors) -> None:
    quiet, loud = (column(extractors["librosa"], voiced(220, level=x), "log_energy")[2:-2] for x in (0.1, 0.2))
    np.testing.assert_allclose(loud - quiet, np.log(2), atol=1e-3)


def test_mel_bands_follow_the_frequency_of_a_tone(extractors) -> None:
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    loudest = []
    for frequency in (300, 1000, 3000, 6000):
        features = extractors["librosa"]((0.3 * np.sin(2 * np.pi * frequency * t)).astype(np.float32))
        loudest.append(int(features[:, :40].mean(axis=0).argmax()))
    assert loudest == sorted(set(loudest))


@pytest.mark.parametrize(("name", "package"), [("egemaps", "opensmile"), ("librosa", "librosa")])
def test_a_missing_package_is_told_with_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'llm-mer\[media\]'"):
        EXTRACTORS[name](12.5)
