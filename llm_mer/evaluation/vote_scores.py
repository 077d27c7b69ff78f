"""What probabilities are worth against annotators' votes, and how far the annotators agree themselves.

For an utterance ``n_c`` of ``A`` annotators named label ``c``, ``T = Σ_c n_c`` (``T = A`` where each named one),
``v_c = n_c / T``, and the answers have probabilities ``p_c`` with the most probable ``a``. Means over utterances of

    cross_entropy        -Σ_c v_c ln p_c                                    least: the votes' entropy H(v)
    js_divergence        H((v + p) / 2) - (H(v) + H(p)) / 2, in nats          least: 0
    agreement            n_a / A: one annotator drawn at random named a       most: max_c n_c / A
    majority_accuracy    [a has the most votes], ties left out                most: 1

and ``entropy_correlation``, Pearson's r of H(v) and H(p): is the model unsure where annotators disagree?

**What the annotators' agreement allows** is told by leaving one out. Of all labels an annotator named, one is drawn:

    agreement            Σ_c n_c (n_c - 1) / (T (A - 1)): another annotator named it too
    cross_entropy        -Σ_c v_c ln[(n_c - 1 + π_c) / (T (A - 1) / A + 1)]: the others' votes, and one vote by the constant
                         distribution π, as the probabilities
    majority_accuracy    Σ_c n_c / A · [c first of n - e_c] / (labels first of n - e_c): it is the majority of the others

The last is known only where each annotator named one label; who named which others is not in the counts. The vote left out
is independent of the others given the utterance, so the first and third are unbiased for what they say, whatever the number
of utterances: with each naming one label of true probabilities ``q``, the first is ``Σ_c q_c²`` in expectation. No
probabilities have a cross-entropy below H(q) in expectation, which lies between the votes' entropy (too low by Jensen's
inequality) and the cross-entropy of the others' votes (too high, as that of any probabilities). Cross-entropy and agreement
are linear in the votes, so a model is on the same footing with all votes as with one; for the majority ``left_out`` is the
model's accuracy against the others' majority. Divergence and correlation of so few votes are mostly their noise, of which
three votes allow no unbiased estimate: nothing is claimed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr, logsumexp

from llm_mer.evaluation.clusters import UTTERANCE, Clusters
from llm_mer.evaluation.resampling import correlation, mean_interval, percentile_interval, resample
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task

Interval = tuple[float, float]

CROSS_ENTROPY, JS_DIVERGENCE, AGREEMENT = "cross_entropy", "js_divergence", "agreement"
MAJORITY_ACCURACY, ENTROPY_CORRELATION = "majority_accuracy", "entropy_correlation"
VOTE_METRICS: tuple[str, ...] = (CROSS_ENTROPY, JS_DIVERGENCE, AGREEMENT, MAJORITY_ACCURACY, ENTROPY_CORRELATION)


@dataclass(frozen=True)
class VoteScore:
    """One metric against votes; intervals are 95 % over :class:`~llm_mer.evaluation.clusters.Clusters`.

    Attributes:
        metric: one of :data:`VOTE_METRICS`. n: utterances it is over. value, interval: of the answers.
        constant, constant_interval: the same of one distribution for all, the votes' own mean unless another was given;
            None for a correlation. extreme: the least or most that any answers could have on these votes.
        annotators, annotators_interval: one annotator left out; None where the counts do not say it.
        left_out: of the answers against what is left when one annotator is; None where it is ``value``.
        unit, units: what is resampled, and how many there are.
    """

    metric: str
    n: int
    value: float
    interval: Interval
    constant: float | None
    constant_interval: Interval | None
    extreme: float
    annotators: float | None
    annotators_interval: Interval | None
    left_out: float | None
    unit: str
    units: int

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> VoteScore:
        """Read plain values back."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        return cls(**values)


@dataclass(frozen=True)
class VoteTable:
    """Votes of ``N`` utterances on ``C`` labels.

    Attributes:
        counts: ``(N, C)``. annotators: ``(N,)``. exclusive: whether every annotator of every utterance named one label.
    """

    counts: np.ndarray
    annotators: np.ndarray
    exclusive: bool

    @classmethod
    def of(cls, task: Task, predictions: Sequence[Prediction]) -> VoteTable:
        """The votes that predictions carry."""
        counts = np.array([[p.votes.get(name, 0) for name in task.label_names] for p in predictions], dtype=np.float64)
        named = np.array([np.nan if p.annotators is None else p.annotators for p in predictions], dtype=np.float64)
        return cls(counts, np.where(np.isnan(named), counts.sum(axis=1), named), bool(np.isnan(named).all()))

    @property
    def shares(self) -> np.ndarray:
        """``v``: ``(N, C)``."""
        return self.counts / self.counts.sum(axis=1, keepdims=True)

    @property
    def first(self) -> np.ndarray:
        """Which labels have the most votes: ``(N, C)`` bool."""
        return self.counts == self.counts.max(axis=1, keepdims=True)

    @property
    def clear(self) -> np.ndarray:
        """Where there is a majority: ``(N,)`` bool."""
        return self.first.sum(axis=1) == 1

    def majority_of_others(self) -> np.ndarray:
        """``(N, C, C)``: with a vote for the first label left out, the part of the others' majority that the second is.

        Parts of tied labels are equal and sum to 1; rows of labels that nobody named are 0.
        """
        size = self.counts.shape[1]
        others = self.counts[:, None, :] - np.eye(size)[None]
        first = others == others.max(axis=2, keepdims=True)
        parts = first / first.sum(axis=2, keepdims=True)
        return np.where(self.counts[:, :, None] > 0, parts, 0.0)


def constant_of(votes: VoteTable) -> np.ndarray:
    """The mean of the votes' distributions, of all constant ones the least cross-entropy on them: ``(C,)``."""
    return np.asarray(votes.shares.mean(axis=0))


def utterance_scores(metric: str, votes: VoteTable, log_probs: np.ndarray) -> np.ndarray:
    """A metric of each utterance from ``(N, C)`` log-probabilities: ``(N,)``; a tie's majority accuracy is NaN."""
    probs, shares = np.exp(log_probs), votes.shares
    if metric == CROSS_ENTROPY:
        return -np.where(shares > 0, shares * np.where(shares > 0, log_probs, 0.0), 0.0).sum(axis=1)
    if metric == JS_DIVERGENCE:
        return np.asarray(entr((shares + probs) / 2).sum(axis=1) - (entr(shares) + entr(probs)).sum(axis=1) / 2)
    answers, rows = log_probs.argmax(axis=1), np.arange(len(log_probs))
    if metric == AGREEMENT:
        return np.asarray(votes.counts[rows, answers] / votes.annotators)
    if metric == MAJORITY_ACCURACY:
        return np.where(votes.clear, votes.first[rows, answers], np.nan)
    raise ValueError(f"no metric of single utterances: {metric}")


def annotator_scores(metric: str, votes: VoteTable, constant: np.ndarray) -> np.ndarray | None:
    """:func:`utterance_scores` of annotators, one left out (see above): ``(N,)``, None where the counts do not say it.

    NaN for an utterance with one annotator, who has no others.
    """
    counts, total = votes.counts, votes.counts.sum(axis=1)
    annotators = np.where(votes.annotators < 2, np.nan, votes.annotators)
    if metric == AGREEMENT:
        return np.asarray((counts * (counts - 1)).sum(axis=1) / (total * (annotators - 1)))
    if metric == CROSS_ENTROPY:
        others = (total * (annotators - 1) / annotators)[:, None]
        with np.errstate(divide="ignore"):
            log_probs = np.log(np.maximum(counts - 1, 0) + constant) - np.log(others + 1)
        return np.where(np.isnan(annotators), np.nan, utterance_scores(CROSS_ENTROPY, votes, log_probs))
    if metric == MAJORITY_ACCURACY and votes.exclusive:
        own = np.diagonal(votes.majority_of_others(), axis1=1, axis2=2)
        return np.where(np.isnan(annotators), np.nan, (votes.shares * own).sum(axis=1))
    return None


def accuracy_against_others(votes: VoteTable, log_probs: np.ndarray) -> np.ndarray | None:
    """Whether answers are the majority of the annotators but one, on average over whom: ``(N,)``."""
    if not votes.exclusive:
        return None
    rows, answers = np.arange(len(log_probs)), log_probs.argmax(axis=1)
    right = (votes.shares * votes.majority_of_others()[rows, :, answers]).sum(axis=1)
    return np.where(votes.annotators < 2, np.nan, right)


def best_possible(metric: str, votes: VoteTable) -> np.ndarray:
    """What no answers can be better than on these votes: ``(N,)``."""
    if metric == CROSS_ENTROPY:
        return np.asarray(entr(votes.shares).sum(axis=1))
    if metric == AGREEMENT:
        return np.asarray(votes.counts.max(axis=1) / votes.annotators)
    return np.full(len(votes.counts), 0.0 if metric == JS_DIVERGENCE else 1.0)


def log_probabilities_of(predictions: Sequence[Prediction]) -> np.ndarray:
    """``(N, C)``, normalised in float64."""
    log_probs = np.array([p.log_probabilities for p in predictions], dtype=np.float64)
    return np.asarray(log_probs - logsumexp(log_probs, axis=1, keepdims=True))


def vote_scores(
    task: Task, predictions: Sequence[Prediction], resamples: int, seed: int, constant: np.ndarray | None = None
) -> list[VoteScore]:
    """The scores of predictions that have votes; none where there are none, or an answer has no probabilities.

    Args:
        constant: a distribution ``(C,)`` for comparison, such as that of the training votes; all above 0 where votes are.
    """
    voted = [p for p in predictions if p.votes]
    if not voted or any(not p.log_probabilities for p in voted):
        return []
    votes, log_probs = VoteTable.of(task, voted), log_probabilities_of(voted)
    chosen = constant_of(votes) if constant is None else constant
    with np.errstate(divide="ignore"):
        same = np.broadcast_to(np.log(chosen), log_probs.shape)
    clusters = Clusters.of(voted)

    def mean(values: np.ndarray | None) -> tuple[float, Interval] | tuple[None, None]:
        if values is None:
            return None, None
        kept = ~np.isnan(values)
        if not kept.any():
            return None, None
        units = clusters if kept.all() else clusters.take(kept)
        return float(values[kept].mean()), mean_interval(values[kept], units, resamples, seed)

    found = []
    for metric in VOTE_METRICS:
        if metric == ENTROPY_CORRELATION:
            continue
        values = utterance_scores(metric, votes, log_probs)
        value, interval = mean(values)
        if value is None or interval is None:
            continue
        against = accuracy_against_others(votes, log_probs) if metric == MAJORITY_ACCURACY else None
        units = clusters.take(~np.isnan(values))
        same_for_all, its_interval = mean(_constant_scores(metric, votes, same))
        annotators, their_interval = mean(annotator_scores(metric, votes, chosen))
        score = VoteScore(
            metric,
            int((~np.isnan(values)).sum()),
            value,
            interval,
            same_for_all,
            its_interval,
            float(best_possible(metric, votes).mean()),
            annotators,
            their_interval,
            mean(against)[0],
            units.unit,
            units.count,
        )
        found.append(score)
    return [*found, _entropy_correlation(votes, log_probs, clusters, resamples, seed)]


def _constant_scores(metric: str, votes: VoteTable, log_probs: np.ndarray) -> np.ndarray:
    """Of one distribution; as an answer, the label that does best by the metric."""
    if metric == MAJORITY_ACCURACY and votes.clear.any():
        best = votes.first[votes.clear].mean(axis=0).argmax()
    elif metric == AGREEMENT:
        best = (votes.counts / votes.annotators[:, None]).mean(axis=0).argmax()
    else:
        return utterance_scores(metric, votes, log_probs)
    answer = np.zeros(log_probs.shape)
    answer[:, best] = 1.0
    return utterance_scores(metric, votes, answer)


def _entropy_correlation(
    votes: VoteTable, log_probs: np.ndarray, clusters: Clusters, resamples: int, seed: int
) -> VoteScore:
    spread, own = entr(votes.shares).sum(axis=1), entr(np.exp(log_probs)).sum(axis=1)
    value = float(correlation(spread[None], own[None])[0])
    interval = percentile_interval(resample(correlation, spread, own, resamples, seed, clusters))
    return VoteScore(
        ENTROPY_CORRELATION,
        len(spread),
        value,
        interval,
        constant=None,
        constant_interval=None,
        extreme=1.0,
        annotators=None,
        annotators_interval=None,
        left_out=None,
        unit=clusters.unit,
        units=clusters.count,
    )


def vote_line(scores: Sequence[VoteScore]) -> str:
    """Scores against votes as one line of text."""
    shown = []
    for score in scores:
        low, high = score.interval
        beside = [] if score.constant is None else [f"constant {score.constant:.3f}"]
        if score.metric in (CROSS_ENTROPY, AGREEMENT):
            beside.append(f"{'least' if score.metric == CROSS_ENTROPY else 'most'} {score.extreme:.3f}")
        beside += [] if score.annotators is None else [f"annotators {score.annotators:.3f}"]
        beside += [] if score.left_out is None else [f"against the same {score.left_out:.3f}"]
        details = f" ({', '.join(beside)})" if beside else ""
        counted = f" of {score.n}" if score.n != scores[0].n else ""
        shown.append(f"{score.metric}{counted} {score.value:.3f} [{low:.3f}, {high:.3f}]{details}")
    units = "" if scores[0].unit == UTTERANCE else f" in {scores[0].units} {scores[0].unit}s"
    return f"n={scores[0].n}{units}  " + "  ".join(shown)
