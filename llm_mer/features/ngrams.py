"""Text features without any model: hashed character n-grams."""

from __future__ import annotations

import numpy as np

NUM_FEATURES = 1024
MAX_NGRAM_LENGTH = 4


class HashedNgrams:
    """Character n-grams of one to four characters within words, hashed to 1024 signed counts of unit length: ``(1, 1024)``.

    scikit-learn's ``HashingVectorizer``: nothing is fitted, so a text has the same features in any data set and split. A
    Chinese sentence, having no spaces, is one word.
    """

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(
            analyzer="char_wb", ngram_range=(1, MAX_NGRAM_LENGTH), n_features=NUM_FEATURES, norm="l2"
        )
        self.names = [f"ngrams_{i}" for i in range(NUM_FEATURES)]

    def __call__(self, text: str) -> np.ndarray:
        return np.asarray(self._vectorizer.transform([text]).toarray(), dtype=np.float32)
