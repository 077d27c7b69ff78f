"""Effects of speakers equal the conditional mean of a Gaussian model; what is known of a speaker is subtracted once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.data.speaker_effects import KnownSpeakers, SpeakerEffects, UtteranceMeans, collect_means
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

MEAN, BETWEEN, WITHIN = np.array([2.0, -1.0, 0.0]), np.array([4.0, 0.25, 0.0]), np.array([1.0, 1.0, 1.0])


def simulate(speakers: int, utterances: list[int], seed: int = 0, language: str = "en") -> list[Utterance]:
    """Utterances whose steps lie around the effect of their speaker and one of their own."""
    generator = np.random.default_rng(seed)
    found = []
    for s in range(speakers):
        effect = generator.normal(0, np.sqrt(BETWEEN))
        for u in range(utterances[s % len(utterances)]):
            steps = MEAN + effect + generator.normal(0, np.sqrt(WITHIN)) + generator.normal(0, 0.01, (5, 3))
            found.append(
                Utterance(
                    id=f"s{s}-u{u}",
                    split="train",
                    language=language,
                    text="hello",
                    speaker=f"s{s}",
                    labels={"emotion": "joy"},
                    audio_features=steps.astype(np.float32),
                )
            )
    return found


def fit(utterances: list[Utterance]) -> SpeakerEffects:
    return SpeakerEffects.fit(collect_means(utterances, ["audio"])["audio"], "data")


def test_variances_are_those_of_the_simulated_speakers_whatever_the_numbers_of_their_utterances() -> None:
    found = [fit(simulate(60, [2, 5, 11], seed)) for seed in range(20)]
    # Within 3.5 standard errors of 20 draws: of a variance with k degrees of freedom √(2 / 20 k) of it.
    assert (np.abs(np.mean([f.between for f in found], axis=0) - BETWEEN) < 3.5 * (BETWEEN * 0.041 + 0.01)).all()
    assert (np.abs(np.mean([f.within for f in found], axis=0) - WITHIN) < 3.5 * WITHIN * 0.0183).all()
    assert (np.abs(np.mean([f.mean for f in found], axis=0) - MEAN) < 3.5 * np.sqrt((BETWEEN + 0.2) / 1200)).all()


def test_variances_equal_the_sums_of_squares_written_out() -> None:
    utterances = simulate(4, [1, 3, 2])
    means = {u.id: u.audio_features.astype(np.float64).mean(axis=0) for u in utterances}
    groups = [[means[u.id] for u in utterances if u.speaker == f"s{s}"] for s in range(4)]
    total, grand = len(utterances), np.mean(list(means.values()), axis=0)
    inside = sum(((np.array(g) - np.mean(g, axis=0)) ** 2).sum(axis=0) for g in groups) / (total - 4)
    outside = sum(len(g) * (np.mean(g, axis=0) - grand) ** 2 for g in groups) / 3
    size = (total - sum(len(g) ** 2 for g in groups) / total) / 3
    found = fit(utterances)
    assert np.allclose(found.mean, grand, rtol=1e-10)
    assert np.allclose(found.within, inside, rtol=1e-8)
    assert np.allclose(found.between, np.maximum((outside - inside) / size, 0), rtol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_predicted_effect_is_the_conditional_mean_of_a_gaussian(count: int) -> None:
    effects = SpeakerEffects(MEAN, WITHIN, BETWEEN)
    observed = np.random.default_rng(3).normal(size=(count, 3)) * 3
    expected = np.zeros(3)
    for j in range(3):  # E[b | m] = τ² 1ᵀ (τ² 1 1ᵀ + σ² I)⁻¹ (m - μ)
        covariance = BETWEEN[j] * np.ones((count, count)) + WITHIN[j] * np.eye(count)
        expected[j] = BETWEEN[j] * np.linalg.solve(covariance, observed[:, j] - MEAN[j]).sum()
    assert np.allclose(effects.predict(observed.mean(axis=0), count), expected, atol=1e-12)
    assert effects.predict(observed.mean(axis=0), count)[2] == 0.0  # speakers do not differ in it


def test_a_recording_that_stands_in_two_rows_counts_once() -> None:
    once = simulate(3, [4])
    twice = [*once, *(dataclasses.replace(u, id=f"zh-{u.id}", language="zh") for u in once)]
    assert fit(twice).to_dict() == fit(once).to_dict()


def test_effects_come_back_from_a_checkpoint_as_they_were() -> None:
    found = fit(simulate(3, [4]))
    assert np.array_equal(SpeakerEffects.from_dict(found.to_dict()).between, found.between)


@pytest.mark.parametrize(("speakers", "utterances"), [(1, [9]), (4, [1])])
def test_too_little_to_tell_speakers_from_utterances_is_refused(speakers: int, utterances: list[int]) -> None:
    with pytest.raises(UserError, match=r"data: .* different utterances of .* needs two speakers or more"):
        fit(simulate(speakers, utterances))


def dataset(utterances: list[Utterance]) -> MerDataset:
    return MerDataset(utterances, [get_task("emotion")])


def test_what_every_utterance_of_a_speaker_has_is_subtracted_as_far_as_it_is_known() -> None:
    utterances = simulate(3, [50])
    table = dataset(utterances)
    table.know_speakers({"audio": SpeakerEffects(MEAN, WITHIN, BETWEEN)})
    means = np.array(
        [np.mean([table.utterance(50 * s + u).audio_features.mean(axis=0) for u in range(50)], 0) for s in range(3)]
    )
    raw = np.array(
        [np.mean([utterances[50 * s + u].audio_features.mean(axis=0) for u in range(50)], axis=0) for s in range(3)]
    )
    left = WITHIN / (50 * BETWEEN + WITHIN)
    assert np.allclose(means - MEAN, left * (raw - MEAN), atol=1e-5)


def test_an_unknown_speaker_is_known_from_the_utterance_itself_whatever_stands_beside_it() -> None:
    utterances = simulate(2, [3])
    nobody = [dataclasses.replace(u, speaker=None) for u in utterances]
    alone = KnownSpeakers({"audio": SpeakerEffects(MEAN, WITHIN, BETWEEN)})
    mean = utterances[4].audio_features.astype(np.float64).mean(axis=0)
    expected = utterances[4].audio_features - BETWEEN / (BETWEEN + WITHIN) * (mean - MEAN)
    found = alone.normalise(nobody[4], {"audio": None})
    assert np.allclose(found.audio_features, expected, atol=1e-5)
    assert alone.count(None) == alone.count("s1") == 1


def test_shuffled_sound_is_normalised_by_the_speaker_it_came_from() -> None:
    utterances = simulate(3, [6])
    table = dataset(utterances)
    table.know_speakers({"audio": SpeakerEffects(MEAN, WITHIN, BETWEEN)})
    shuffled = table.shuffled(["audio"], seed=1)
    for row in range(len(utterances)):
        source = int(shuffled.permutation["audio"][row])
        assert np.array_equal(shuffled.utterance(row).audio_features, table.utterance(source).audio_features)


def test_corrupted_utterances_tell_of_their_speakers_as_they_are_read() -> None:
    class Louder:
        recomputes_features = False

        def __call__(self, utterance: Utterance) -> Utterance:
            return dataclasses.replace(utterance, audio_features=utterance.audio_features + 1)

    effects = {"audio": SpeakerEffects(MEAN, WITHIN, BETWEEN)}
    table = dataset(simulate(3, [6]))
    table.know_speakers(effects)
    changed = table.corrupted(Louder())  # type: ignore[arg-type]
    assert changed.speakers_known is None
    changed.know_speakers(effects)
    weight = 6 * BETWEEN / (6 * BETWEEN + WITHIN)
    expected = table.utterance(0).audio_features + 1 - weight
    assert np.allclose(changed.utterance(0).audio_features, expected, atol=1e-5)


def test_data_that_name_no_speaker_are_refused() -> None:
    nobody = [dataclasses.replace(u, speaker=None) for u in simulate(2, [3])]
    with pytest.raises(UserError, match="split 'train': no utterance names its speaker"):
        dataset(nobody).know_speakers({"audio": SpeakerEffects(MEAN, WITHIN, BETWEEN)})


def test_means_add_up_without_the_utterances() -> None:
    means = UtteranceMeans()
    steps = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    for features in steps:
        means.add(features)
    assert np.allclose(means.mean, steps.astype(np.float64).mean(axis=(0, 1)))
    assert means.count == 4
