"""What the language model learns, by name (see :mod:`llm_mer.training.answer_objectives`)."""

from __future__ import annotations

TOKENS, ANSWERS = "tokens", "answers"
OBJECTIVES: tuple[str, ...] = (TOKENS, ANSWERS)

DISTRIBUTION, MAJORITY = "distribution", "majority"
VOTE_TARGETS: tuple[str, ...] = (DISTRIBUTION, MAJORITY)
"""What is learnt of annotators' votes: their distribution over the labels, or the label with the most of them."""

CRPS, ABSOLUTE_ERROR, CROSS_ENTROPY = "crps", "absolute_error", "cross_entropy"
NUMBER_OBJECTIVES: tuple[str, ...] = (CRPS, ABSOLUTE_ERROR, CROSS_ENTROPY)
"""What is minimised for a number: the continuous ranked probability score (Gneiting and Raftery 2007, equation 20), the
expected absolute error ``Σ_c p(c) |g_c - y|``, or the cross entropy of the nearest answer."""
