"""The distance from the training data against scikit-learn's, a closed form and an explicit covariance matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf, ledoit_wolf

from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.data.training_range import (
    DIRECTIONS,
    FEWEST_HELD_OUT,
    FEWEST_UTTERANCES,
    TrainingRange,
    fit_training_ranges,
)
from llm_mer.errors import UserError


def correlated(count: int, size: int, seed: int) -> np.ndarray:
    """Features of very different scales that depend on each other."""
    mixing = np.random.default_rng(99).standard_normal((size, size)) * np.logspace(0, 2, size)
    return 50 + np.random.default_rng(seed).standard_normal((count, size)) @ mixing


def fit(training: np.ndarray, held_out: np.ndarray) -> TrainingRange:
    found = TrainingRange.fit(training, held_out)
    assert found is not None
    return found


def test_with_few_features_it_is_scikit_learns_mahalanobis_distance() -> None:
    training, held_out, other = correlated(200, 12, 0), correlated(150, 12, 1), correlated(20, 12, 2) * 1.5
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    fitted = LedoitWolf().fit((training - mean) / deviation)
    limit = np.quantile(np.sqrt(fitted.mahalanobis((held_out - mean) / deviation) / 12), 0.99)
    expected = np.sqrt(fitted.mahalanobis((other - mean) / deviation) / 12) / limit
    found = fit(training, held_out)
    assert found.limit == pytest.approx(limit)
    np.testing.assert_allclose([found.distance(row[None]) for row in other], expected, rtol=1e-9)


def test_beyond_the_widest_directions_variances_are_averaged() -> None:
    size = DIRECTIONS + 15
    training, other = correlated(120, size, 0), correlated(5, size, 3)
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    covariance, _ = ledoit_wolf((training - mean) / deviation, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    values[: size - DIRECTIONS] = values[: size - DIRECTIONS].mean()  # eigh sorts from the smallest
    inverse = np.linalg.inv(vectors @ np.diag(values) @ vectors.T)
    found = fit(training, correlated(50, size, 1))
    for row in other:
        centred = (row - mean) / deviation
        assert found.distance(row[None]) * found.limit == pytest.approx(np.sqrt(centred @ inverse @ centred / size))


def test_of_normal_data_the_limit_is_the_quantile_of_chi() -> None:
    found = fit(correlated(4000, 5, 0), correlated(4000, 5, 1))
    assert found.limit == pytest.approx(np.sqrt(chi2.ppf(0.99, 5) / 5), rel=0.05)
    share = np.mean([found.distance(row[None]) > 1 for row in correlated(4000, 5, 2)])
    assert 0.005 < share < 0.02


def test_units_and_constant_features_make_no_difference() -> None:
    training, held_out, other = correlated(90, 6, 0), correlated(40, 6, 1), correlated(3, 6, 2)
    plain = fit(training, held_out)
    factors, shifts = np.array([1e-3, 5.0, -2.0, 1e4, 1.0, 0.1]), np.array([0.0, 7.0, -1e3, 2.0, 0.5, 9.0])

    def changed(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x * factors + shifts, np.full((len(x), 2), 3.0)], axis=1)

    moved = fit(changed(training), changed(held_out))
    for row, other_row in zip(other, changed(other), strict=True):
        assert moved.distance(other_row[None]) == pytest.approx(plain.distance(row[None]), rel=1e-6)


def test_steps_count_by_their_mean() -> None:
    found = fit(correlated(90, 6, 0), correlated(40, 6, 1))
    steps = correlated(7, 6, 4).astype(np.float32)
    assert found.distance(steps) == pytest.approx(found.distance(steps.mean(axis=0, dtype=np.float64)[None]))


def test_too_little_is_not_known() -> None:
    few, enough = correlated(FEWEST_UTTERANCES - 1, 4, 0), correlated(FEWEST_UTTERANCES, 4, 0)
    assert TrainingRange.fit(few, few) is None
    assert TrainingRange.fit(np.ones((90, 4)), np.ones((90, 4))) is None
    assert TrainingRange.fit(enough, enough[: FEWEST_HELD_OUT - 1]) is None
    assert TrainingRange.fit(enough, enough[:FEWEST_HELD_OUT]) is not None


def test_fewer_utterances_than_features_give_finite_distances() -> None:
    size = FEWEST_UTTERANCES + 40
    training = correlated(FEWEST_UTTERANCES, size, 0)
    found = fit(training, training[:FEWEST_HELD_OUT])
    distances = [found.distance(row[None]) for row in correlated(5, size, 1)]
    assert np.isfinite(distances).all()
    assert min(distances) > 0


@pytest.mark.parametrize("size", [6, DIRECTIONS + 8])
def test_it_reads_back_from_plain_containers_with_the_same_distances(size: int) -> None:
    found = fit(correlated(200, size, 0), correlated(60, size, 1))
    again = TrainingRange.from_dict(json.loads(json.dumps(found.to_dict())))
    for row in correlated(10, size, 2):
        assert again.distance(row[None]) == pytest.approx(found.distance(row[None]), rel=1e-3)


@pytest.mark.parametrize(
    "change", [{"mean": [0.0]}, {"limit": 0.0}, {"rest": None}, {"directions": [[1.0], [2.0]]}, {"variances": "x"}]
)
def test_a_damaged_range_is_refused(change: dict[str, object]) -> None:
    entry = fit(correlated(90, 4, 0), correlated(30, 4, 1)).to_dict()
    with pytest.raises(UserError, match="training_ranges of audio: damaged"):
        TrainingRange.from_dict({**entry, **change}, "training_ranges of audio")


def dataset(rows: np.ndarray, split: str) -> MerDataset:
    utterances = [
        Utterance(f"{split}{i}", split, "en", "words", audio_features=row[None].astype(np.float32))
        for i, row in enumerate(rows)
    ]
    return MerDataset(utterances, [])


def test_without_validation_data_every_fifth_training_utterance_is_held_out() -> None:
    rows = correlated(100, 4, 0).astype(np.float32)
    expected = fit(np.array([row for i, row in enumerate(rows) if i % 5]), rows[::5])
    for held_out in (None, dataset(correlated(FEWEST_HELD_OUT - 1, 4, 1), "valid")):
        found = fit_training_ranges(dataset(rows, "train"), held_out, ["audio", "vision"])
        assert list(found) == ["audio"]
        assert found["audio"].utterances == 80
        assert found["audio"].limit == pytest.approx(expected.limit)
    other = fit_training_ranges(dataset(rows, "train"), dataset(correlated(60, 4, 1), "valid"), ["audio"])
    assert other["audio"].utterances == 100
