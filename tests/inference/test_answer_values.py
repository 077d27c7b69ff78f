"""What answers a question is read from the same prediction, whatever else stands in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from llm_mer.errors import UserError
from llm_mer.inference.answer_values import fill_distribution, poolable_scores, pooled_answer
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task
from llm_mer.scoring.temperature import scale_by_temperature

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")
GENERATOR = np.random.default_rng(0)
SCORED, HEARD = log_softmax(GENERATOR.normal(size=(2, EMOTION.num_classes)), axis=1)
WEIGHTS = {("emotion", "en"): {"scored": 0.7, "head": 1.3}, ("sentiment", "en"): {"scored": 1.0, "head": 4.0}}


def classified(temperature: float | None = None) -> Prediction:
    """A language model's answer, with its temperature, and a head's beside it."""
    given = SCORED if temperature is None else scale_by_temperature(SCORED, temperature)
    prediction = Prediction("a", "emotion", "en", "", outside_mass=-3.0, temperature=temperature)
    fill_distribution(prediction, EMOTION, given, "median")
    prediction.head_log_probabilities = HEARD.tolist()
    return prediction


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_a_pool_is_the_weighted_product_whether_answers_are_calibrated_or_not(temperature: float | None) -> None:
    found = pooled_answer(classified(temperature), EMOTION, WEIGHTS, "median")
    product = np.exp(SCORED) ** 0.7 * np.exp(HEARD) ** 1.3
    product /= product.sum()
    np.testing.assert_allclose(np.exp(found.log_probabilities), product, rtol=1e-9)
    assert found.value == EMOTION.label_names[int(product.argmax())]
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert (found.temperature, found.outside_mass, found.pool_weights) == (None, None, {"scored": 0.7, "head": 1.3})


def test_a_score_is_pooled_with_a_normal_distribution_about_the_heads_number() -> None:
    grid = np.array(SENTIMENT.grid())
    log_probabilities = log_softmax(GENERATOR.normal(size=len(grid)))
    prediction = Prediction("a", "sentiment", "en", 0.0, outside_mass=-3.0, head_value=1.23)
    fill_distribution(prediction, SENTIMENT, log_probabilities, "median")
    found = pooled_answer(prediction, SENTIMENT, WEIGHTS, "mean")
    density = np.exp(log_probabilities) * np.exp(-4.0 / 2 * ((grid - 1.23) / (0.1 * 6)) ** 2)
    assert found.value == pytest.approx((density @ grid) / density.sum(), rel=1e-9)


def test_weights_of_another_language_or_of_other_distributions_are_refused() -> None:
    with pytest.raises(UserError, match="in language 'en' the checkpoint keeps weights for none"):
        pooled_answer(classified(), EMOTION, {("emotion", "zh"): WEIGHTS["emotion", "en"]}, "median")
    alone = classified()
    alone.head_log_probabilities = None
    with pytest.raises(UserError, match="keeps weights for scored, head, and its answers have scored;"):
        pooled_answer(alone, EMOTION, WEIGHTS, "median")


def test_an_adapter_alone_has_nothing_to_pool() -> None:
    prediction = classified()
    prediction.outside_mass = None
    assert poolable_scores(prediction, EMOTION) == {}


@pytest.mark.parametrize("statistic", ["median", "mean", "mode"])
def test_a_scores_value_is_the_chosen_point_of_its_distribution(statistic: str) -> None:
    prediction = Prediction("a", "sentiment", "en", 0.0)
    fill_distribution(prediction, SENTIMENT, log_softmax(GENERATOR.normal(size=len(SENTIMENT.grid()))), statistic)
    assert prediction.value == getattr(prediction, statistic)
