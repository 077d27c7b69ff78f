"""Feature statistics equal NumPy's over all frames at once, however the frames arrive."""

import json

import numpy as np
import pytest

from llm_mer.data.statistics import CLIP, FeatureStatistics, RunningStatistics


def running(blocks: list[np.ndarray]) -> FeatureStatistics:
    statistics = RunningStatistics()
    for block in blocks:
        statistics.update(block)
    result = statistics.result()
    assert result is not None
    return result


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 40, 1, 0, 56]], ids=["one block", "frame by frame", "uneven"])
def test_running_statistics_equal_numpy_however_the_frames_are_cut(sizes: list[int]) -> None:
    frames = np.random.default_rng(0).normal([0, 5, -100], [1, 0.01, 30], size=(100, 3)).astype(np.float32)
    found = running(np.split(frames, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(found.mean, frames.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, frames.astype(np.float64).std(axis=0), rtol=1e-6)
    assert found.mean.dtype == found.std.dtype == np.float32


def test_a_large_mean_does_not_swamp_a_small_deviation() -> None:
    frames = (1e5 + np.random.default_rng(1).normal(size=(5000, 1))).astype(np.float32)
    found = running(np.split(frames, 50))
    np.testing.assert_allclose(found.std, frames.astype(np.float64).std(axis=0), rtol=1e-6)


def test_no_frame_gives_no_statistics() -> None:
    statistics = RunningStatistics()
    statistics.update(np.zeros((0, 3), dtype=np.float32))
    assert statistics.result() is None


def test_training_frames_come_out_with_mean_zero_and_deviation_one() -> None:
    frames = np.random.default_rng(2).normal([3, -7], [0.5, 20], size=(1000, 2)).astype(np.float32)
    normal = running([frames]).apply(frames)
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-5)
    assert normal.dtype == np.float32


def test_apply_on_a_hand_computed_case() -> None:
    statistics = FeatureStatistics(np.array([1.0, 0.0], dtype=np.float32), np.array([2.0, 0.5], dtype=np.float32))
    assert statistics.apply(np.array([[3.0, 1.0], [1.0, -1.0]], dtype=np.float32)).tolist() == [[1.0, 2.0], [0.0, -2.0]]


def test_a_corrupt_frame_is_clipped() -> None:
    statistics = FeatureStatistics(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32))
    assert statistics.apply(np.array([[1e30], [-1e30], [9.0]], dtype=np.float32)).tolist() == [[CLIP], [-CLIP], [9.0]]


@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678, 3e7])
def test_a_constant_feature_becomes_zero(value: float) -> None:
    frames = np.full((37, 1), value, dtype=np.float32)
    statistics = running(np.split(frames, [5, 6, 30]))
    assert statistics.apply(frames).tolist() == [[0.0]] * 37
    assert statistics.apply(frames + 100).tolist() == [[0.0]] * 37


def test_statistics_survive_json() -> None:
    statistics = running([np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)])
    back = FeatureStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert back.mean.tobytes() == statistics.mean.tobytes()
    assert back.std.tobytes() == statistics.std.tobytes()
