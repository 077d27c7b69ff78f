"""Several distributions over the same answers, pooled into one, and the fit of their weights.

A log-linear pool (Genest and Zidek 1986, *Combining probability distributions*); with weights of one it is a product of
experts (Hinton 2002), and with a single distribution the weight is an inverse temperature.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

MAX_WEIGHT = 10.0
"""Where a fit stops: weights of distributions that are always right would grow without end."""
POINT_SPREAD = 0.1
"""Standard deviation of the normal distribution that stands for a point, in parts of the range of scores."""


def point_scores(grid: np.ndarray, point: float) -> np.ndarray:
    """``(G,)`` unnormalised log-probabilities of scores ``grid (G,)`` about a point: ``-½ ((v - point) / (0.1 range))²``.

    A weight ``w`` in a pool makes the standard deviation ``0.1 range / √w``.
    """
    spread = POINT_SPREAD * float(grid[-1] - grid[0])
    scores: np.ndarray = -0.5 * ((np.asarray(grid, dtype=np.float64) - point) / spread) ** 2
    return scores


def pool(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``log softmax_c(Σ_k w_k s_kc)``: ``(…, K, C), (K,) -> (…, C)``."""
    weighted = np.einsum("...kc,k->...c", np.asarray(scores, dtype=np.float64), np.asarray(weights, dtype=np.float64))
    pooled: np.ndarray = log_softmax(weighted, axis=-1)
    return pooled


def fit_pool(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The weights that minimise the mean negative log-likelihood of the true answers.

    ``L(w) = mean_i [log Σ_c exp(Σ_k w_k s_ikc) - Σ_k w_k s_ik,truth]`` is convex; its gradient by ``w_k`` is
    ``mean_i [Σ_c p_w(c) s_ikc - s_ik,truth]``.

    Args:
        scores: ``(N, K, C)`` log-probabilities of ``K`` distributions, normalised or not. truth: ``(N,)`` true answers.

    Returns:
        ``(K,)`` from 0 to :data:`MAX_WEIGHT`.

    Raises:
        ValueError: no answers, or scores that are not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{len(scores)} answers to fit weights on; there must be one at least, and all finite")
    of_truth = scores[np.arange(len(scores)), :, truth]  # (N, K)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        weighted = np.einsum("nkc,k->nc", scores, weights)
        probabilities = np.exp(log_softmax(weighted, axis=1))
        gradient = (np.einsum("nc,nkc->nk", probabilities, scores) - of_truth).mean(axis=0)
        return float((logsumexp(weighted, axis=1) - of_truth @ weights).mean()), gradient

    count = scores.shape[1]
    start = np.full(count, 1.0 / count)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, MAX_WEIGHT)] * count, tol=1e-12)
    weights: np.ndarray = found.x
    return weights
