"""Which modality is normalised how: options that say nothing or two things are refused."""

from __future__ import annotations

import numpy as np
import pytest

from llm_mer.data.normalisation import check_normalised_modalities, parse_normalisation
from llm_mer.data.statistics import CLIP, normalise_by_own_steps
from llm_mer.errors import UserError


def test_the_default_is_left_out() -> None:
    assert parse_normalisation(["audio=speaker", "vision=global", "text = none"]) == {"audio": "speaker", "text": "none"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("audio", "'audio' is not MODALITY=KIND, e.g. audio=speaker"),
        ("sound=speaker", "modalities are text, audio, vision"),
        ("audio=person", "kinds global, speaker, utterance, none"),
    ],
)
def test_what_is_no_modality_and_kind_is_refused(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_normalisation([entry])


def test_two_kinds_of_a_modality_are_refused() -> None:
    with pytest.raises(UserError, match="'audio' has two kinds, speaker and none"):
        parse_normalisation(["audio=speaker", "audio=none"])


def test_a_modality_that_is_not_read_is_refused() -> None:
    with pytest.raises(UserError, match="vision=none has no effect: the model reads features of audio"):
        check_normalised_modalities({"vision": "none"}, ["audio"])


def test_own_steps_have_mean_0_and_deviation_1_and_level_and_scale_do_not_matter() -> None:
    steps = np.random.default_rng(0).normal(3, 2, size=(40, 3)).astype(np.float32)
    found = normalise_by_own_steps(steps)
    assert np.allclose(found.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(found.std(axis=0), 1, atol=1e-4)
    assert np.allclose(normalise_by_own_steps(7 * steps - 5), found, atol=1e-4)
    assert np.abs(normalise_by_own_steps(np.eye(500, 1, dtype=np.float32))).max() == CLIP


def test_one_step_is_refused_for_nothing_would_be_left() -> None:
    with pytest.raises(ValueError, match="1 step; normalisation by utterance needs two or more"):
        normalise_by_own_steps(np.ones((1, 3), dtype=np.float32))
