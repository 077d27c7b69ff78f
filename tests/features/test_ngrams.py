"""Hashed n-grams: a text's own features whatever else is read, unit length, and a language that fits its classes."""

from __future__ import annotations

import numpy as np

from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.features.extractor import Extractor
from llm_mer.features.ngrams import HashedNgrams


def test_features_have_unit_length_and_depend_on_the_text_alone() -> None:
    one, two = HashedNgrams(), HashedNgrams()
    two("something else first")
    for text in ("I am fine", "我很好", "😀", "a"):
        features = one(text)
        assert features.shape == (1, len(one.names))
        assert features.dtype == np.float32
        assert abs(np.linalg.norm(features) - 1) < 1e-6
        np.testing.assert_array_equal(features, two(text))


def test_a_shared_word_makes_sentences_alike() -> None:
    ngrams = HashedNgrams()
    near = float(ngrams("我 今天 很 高兴")[0] @ ngrams("他 今天 很 高兴")[0])
    far = float(ngrams("我 今天 很 高兴")[0] @ ngrams("门外 有 人 敲门")[0])
    assert near > far + 0.15


def test_the_extractor_reads_them_by_name() -> None:
    extractor = Extractor(FeatureSettings(audio="none", vision="none", text="ngrams"))
    found = extractor(Utterance(id="a", text="I am fine")).features["text"]
    np.testing.assert_array_equal(found, HashedNgrams()("I am fine"))
    assert extractor.names["text"][0] == "ngrams_0"
