"""One temperature for a distribution over answers, and its fit.

Guo et al. 2017, *On calibration of modern neural networks*.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 100.0
"""Where a fit stops: the answers of a perfect model are best sharpened without end, those of a useless one flattened so."""


def scale_by_temperature(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """``log softmax(log p / T)`` of ``(…, C)``: flatter for ``T > 1``, sharper below; the order of answers stays."""
    scaled: np.ndarray = log_softmax(np.asarray(log_probabilities, dtype=np.float64) / temperature, axis=-1)
    return scaled


def fit_temperature(log_probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature that minimises the mean negative log-likelihood of the true answers.

    With ``β = 1/T`` the loss ``L(β) = mean_i [log Σ_c exp(β s_ic) - β s_i,truth]`` is convex, and its derivative
    ``mean_i [Σ_c p_β(c) s_ic - s_i,truth]`` rises with β: the minimum is its root.

    Args:
        log_probabilities: ``(N, C)`` natural logs. truth: ``(N,)`` index of each true answer.

    Returns:
        A temperature from :data:`MIN_TEMPERATURE` to :data:`MAX_TEMPERATURE`.

    Raises:
        ValueError: no answers, or log-probabilities that are not finite.
    """
    scores = np.asarray(log_probabilities, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{len(scores)} answers to fit a temperature on; there must be one at least, and all finite")
    of_truth = scores[np.arange(len(scores)), truth]

    def slope(beta: float) -> float:
        return float(((softmax(beta * scores, axis=1) * scores).sum(axis=1) - of_truth).mean())

    least, most = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(least) >= 0:
        return MAX_TEMPERATURE
    if slope(most) <= 0:
        return MIN_TEMPERATURE
    return 1 / float(brentq(slope, least, most, xtol=1e-10))
