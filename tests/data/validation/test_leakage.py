"""What one feature tells of a label agrees with scikit-learn's and scipy's own measures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from llm_mer.data.validation.leakage import class_separation, score_correlation


def test_separation_is_the_best_area_of_one_class_against_the_others() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 4, size=200)
    features = np.round(random.normal(size=(200, 300)) + 0.4 * (classes == 2)[:, None], 1)  # rounded, so there are ties
    best, who = class_separation(features, classes)
    for column in (0, 17, 255, 256, 299):
        areas = [roc_auc_score(classes == c, features[:, column]) for c in range(4)]
        folded = [max(area, 1 - area) for area in areas]
        assert best[column] == pytest.approx(max(folded), abs=1e-12)
        assert who[column] == int(np.argmax(folded))


def test_any_order_of_separate_classes_is_a_full_separation() -> None:
    classes = np.repeat([0, 1, 2], 20)
    coded = np.array([5.0, -1.0, 2.0])[classes][:, None]
    best, _ = class_separation(np.concatenate([coded, np.exp(coded), (classes == 1)[:, None]], axis=1), classes)
    np.testing.assert_array_equal(best, 1.0)


def test_few_utterances_of_a_class_say_nothing() -> None:
    classes = np.array([0] * 9 + [1] * 50)
    best, who = class_separation(classes[:, None].astype(float), classes)
    assert (best[0], who[0]) == (0.5, -1)


def test_correlation_is_the_larger_of_pearson_and_spearman() -> None:
    random = np.random.default_rng(1)
    scores = random.uniform(-3, 3, size=80)
    features = np.stack([scores + random.normal(size=80), np.exp(3 * scores), -scores], axis=1).astype(np.float32)
    found = score_correlation(features, scores)
    for column in range(3):
        parts = pearsonr(features[:, column], scores)[0], spearmanr(features[:, column], scores)[0]
        assert found[column] == pytest.approx(max(map(abs, parts)), abs=1e-6)


def test_a_constant_column_constant_scores_and_few_rows_have_no_correlation() -> None:
    scores = np.linspace(-1, 1, 30)
    assert score_correlation(np.full((30, 1), 0.1, dtype=np.float32), scores)[0] == 0
    assert score_correlation(scores[:, None], np.zeros(30))[0] == 0
    assert score_correlation(scores[:19, None], scores[:19])[0] == 0
