"""Scores against votes equal their definitions, and what annotators reach is unbiased: closed forms and simulations."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr

from llm_mer.evaluation.rows import Evaluation, Row, score_rows
from llm_mer.evaluation.rows import table as table_of
from llm_mer.evaluation.vote_scores import (
    AGREEMENT,
    CROSS_ENTROPY,
    ENTROPY_CORRELATION,
    JS_DIVERGENCE,
    MAJORITY_ACCURACY,
    VoteTable,
    accuracy_against_others,
    annotator_scores,
    best_possible,
    utterance_scores,
    vote_scores,
)
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task

EMOTION = get_task("emotion")
NAMES = EMOTION.label_names
TRUE = np.array([0.5, 0.3, 0.2])


def table(counts: np.ndarray, annotators: int | None = None) -> VoteTable:
    counts = np.asarray(counts, dtype=np.float64)
    each = counts.sum(axis=1) if annotators is None else np.full(len(counts), float(annotators))
    return VoteTable(counts, each, annotators is None)


def predictions(count: int = 40, seed: int = 0, size: int = 3) -> list[Prediction]:
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        log_probs = np.log(random.dirichlet(np.ones(len(NAMES))))
        counts = random.multinomial(size, random.dirichlet(np.ones(len(NAMES))))
        first = [name for name, n in zip(NAMES, counts, strict=True) if n == counts.max()]
        found.append(
            Prediction(
                f"u{i}",
                "emotion",
                "en",
                NAMES[int(log_probs.argmax())],
                log_probabilities=log_probs.tolist(),
                truth=first[0] if len(first) == 1 else None,
                votes={name: int(n) for name, n in zip(NAMES, counts, strict=True) if n},
                dialogue_id=f"d{i // 4}",
            )
        )
    return found


# --- against definitions ----------------------------------------------------------------------------------------------


def test_scores_of_each_utterance_equal_scipys_and_loops_in_float64() -> None:
    given = predictions()
    votes = VoteTable.of(EMOTION, given)
    log_probs = np.array([p.log_probabilities for p in given])
    found = {m: utterance_scores(m, votes, log_probs) for m in (CROSS_ENTROPY, JS_DIVERGENCE, AGREEMENT, MAJORITY_ACCURACY)}
    for i, prediction in enumerate(given):
        v, p = np.array([prediction.votes.get(name, 0) for name in NAMES]) / 3, np.exp(log_probs[i])
        assert found[CROSS_ENTROPY][i] == pytest.approx(entropy(v, p) + entropy(v))
        assert found[JS_DIVERGENCE][i] == pytest.approx(jensenshannon(v, p) ** 2)
        assert found[AGREEMENT][i] == pytest.approx(prediction.votes.get(str(prediction.value), 0) / 3)
        if prediction.truth is None:
            assert np.isnan(found[MAJORITY_ACCURACY][i])
        else:
            assert found[MAJORITY_ACCURACY][i] == (prediction.value == prediction.truth)
    spread = [entropy(list(p.votes.values())) for p in given]
    own = [entropy(np.exp(row)) for row in log_probs]
    scores = {score.metric: score for score in vote_scores(EMOTION, given, 50, 0)}
    assert scores[ENTROPY_CORRELATION].value == pytest.approx(pearsonr(spread, own).statistic)
    assert scores[CROSS_ENTROPY].extreme == pytest.approx(np.mean(spread))


def test_answers_that_are_the_votes_reach_every_extreme_and_none_does_better() -> None:
    given = predictions()
    votes = VoteTable.of(EMOTION, given)
    with np.errstate(divide="ignore"):
        exact = np.log(votes.shares)
    for metric in (CROSS_ENTROPY, JS_DIVERGENCE, AGREEMENT):
        np.testing.assert_allclose(utterance_scores(metric, votes, exact), best_possible(metric, votes), atol=1e-12)
    others = np.array([p.log_probabilities for p in given])
    assert (utterance_scores(CROSS_ENTROPY, votes, others) >= best_possible(CROSS_ENTROPY, votes)).all()
    assert (utterance_scores(AGREEMENT, votes, others) <= best_possible(AGREEMENT, votes)).all()


def test_no_constant_distribution_has_a_lower_cross_entropy_than_the_one_compared_with() -> None:
    given = predictions()
    (score,) = (s for s in vote_scores(EMOTION, given, 20, 0) if s.metric == CROSS_ENTROPY)
    votes, random = VoteTable.of(EMOTION, given), np.random.default_rng(1)
    for _ in range(50):
        other = np.broadcast_to(np.log(random.dirichlet(np.ones(len(NAMES)))), (len(given), len(NAMES)))
        assert utterance_scores(CROSS_ENTROPY, votes, other).mean() >= (score.constant or 0)


# --- what annotators reach --------------------------------------------------------------------------------------------


def test_one_left_out_equals_leaving_each_annotator_out_in_turn() -> None:
    """Annotators by name, one label each: a loop over who is left out."""
    random = np.random.default_rng(2)
    for named in random.integers(0, 3, size=(20, 4)):
        counts = np.bincount(named, minlength=3)[None]
        votes, prior = table(counts), np.array([0.2, 0.3, 0.5])
        agreement, cross, majority = [], [], []
        for i, own in enumerate(named):
            others = np.bincount(np.delete(named, i), minlength=3)
            agreement.append(others[own] / 3)
            cross.append(-np.log(((others + prior) / (3 + 1))[own]))
            first = np.flatnonzero(others == others.max())
            majority.append((own in first) / len(first))
        for metric, expected in ((AGREEMENT, agreement), (CROSS_ENTROPY, cross), (MAJORITY_ACCURACY, majority)):
            found = annotator_scores(metric, votes, prior)
            assert found is not None
            assert found[0] == pytest.approx(np.mean(expected))


def test_agreement_of_annotators_who_name_several_labels_equals_a_loop_over_pairs() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        named = random.random((3, 4)) < 0.5
        named[0, 0] = True
        hits = [named[b, c] for a, b in itertools.permutations(range(3), 2) for c in range(4) if named[a, c]]
        found = annotator_scores(AGREEMENT, table(named.sum(axis=0)[None], 3), np.full(4, 0.25))
        assert found is not None
        assert found[0] == pytest.approx(np.mean(hits))
    assert annotator_scores(MAJORITY_ACCURACY, table(named.sum(axis=0)[None], 3), np.full(4, 0.25)) is None


def every_outcome(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All counts of ``size`` annotators who each name one of three labels, and their probabilities under ``TRUE``."""
    outcomes = np.array(list(itertools.product(range(3), repeat=size)))
    counts = np.stack([(outcomes == c).sum(axis=1) for c in range(3)], axis=1)
    return counts, TRUE[outcomes].prod(axis=1)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_agreement_left_out_is_unbiased_exactly_the_sum_of_squares(size: int) -> None:
    counts, weights = every_outcome(size)
    found = annotator_scores(AGREEMENT, table(counts), TRUE)
    assert found is not None
    assert weights @ found == pytest.approx((TRUE**2).sum(), rel=1e-12)


def test_accuracy_left_out_is_exactly_that_of_one_more_annotator_against_the_majority_of_the_others() -> None:
    counts, weights = every_outcome(4)
    found = annotator_scores(MAJORITY_ACCURACY, table(counts), TRUE)
    others, chances = every_outcome(3)
    first = others == others.max(axis=1, keepdims=True)
    expected = chances @ ((first / first.sum(axis=1, keepdims=True)) @ TRUE)
    assert found is not None
    assert weights @ found == pytest.approx(expected, rel=1e-12)
    # And a system that always says the likeliest label is scored against the same majorities.
    system = accuracy_against_others(table(counts), np.log(np.tile(TRUE, (len(counts), 1))))
    assert system is not None
    assert weights @ system == pytest.approx(chances @ (first / first.sum(axis=1, keepdims=True))[:, 0], rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_entropy_lies_between_that_of_the_votes_and_the_cross_entropy_left_out(size: int) -> None:
    counts, weights = every_outcome(size)
    above = annotator_scores(CROSS_ENTROPY, table(counts), np.full(3, 1 / 3))
    assert above is not None
    below = weights @ best_possible(CROSS_ENTROPY, table(counts))
    assert below < entropy(TRUE) < weights @ above
    # Who knows the true probabilities is at the entropy, and has the agreement of the likeliest label, not above the most.
    known = np.log(np.tile(TRUE, (len(counts), 1)))
    assert weights @ utterance_scores(CROSS_ENTROPY, table(counts), known) == pytest.approx(entropy(TRUE), rel=1e-12)
    assert weights @ utterance_scores(AGREEMENT, table(counts), known) == pytest.approx(TRUE.max(), rel=1e-12)
    assert weights @ best_possible(AGREEMENT, table(counts)) >= TRUE.max()


def test_an_utterance_with_one_annotator_is_left_out_of_what_annotators_reach() -> None:
    votes = table(np.array([[1, 0, 0], [2, 1, 0]]))
    for metric in (AGREEMENT, CROSS_ENTROPY, MAJORITY_ACCURACY):
        found = annotator_scores(metric, votes, np.full(3, 1 / 3))
        assert found is not None
        assert np.isnan(found).tolist() == [True, False]


# --- in an evaluation -------------------------------------------------------------------------------------------------


def test_rows_hold_scores_over_all_votes_ties_included_with_the_unit_of_their_intervals(tmp_path: Path) -> None:
    given = predictions()
    row = next(r for r in score_rows("as is", given, EMOTION, 100, 0) if r.language == "en")
    ties = sum(p.truth is None for p in given)
    assert ties > 0
    assert row.n == len(given) - ties
    scores = {score.metric: score for score in row.vote_scores}
    assert (scores[CROSS_ENTROPY].n, scores[MAJORITY_ACCURACY].n) == (len(given), len(given) - ties)
    assert scores[MAJORITY_ACCURACY].value == pytest.approx(row.metrics["accuracy"])
    assert all(score.unit == "dialogue" and score.units == 10 for score in row.vote_scores)
    for score in row.vote_scores:
        assert score.interval[0] <= score.value <= score.interval[1]
    evaluation = Evaluation("x", {}, "data", "test", 0, 100, rows=[row])
    evaluation.save(tmp_path)
    assert Evaluation.load(tmp_path).rows[0].vote_scores == row.vote_scores


def test_the_table_says_each_score_with_its_n_unit_interval_and_what_it_is_beside() -> None:
    given = predictions()
    rows = score_rows("as is", given, EMOTION, 100, 0)
    line = next(x for x in table_of(Evaluation("x", {}, "data", "test", 0, 100, rows=rows)).split("\n") if " votes " in x)
    score = rows[0].vote_scores[0]
    low, high = score.interval
    assert (
        f"n=40 in 10 dialogues  cross_entropy {score.value:.3f} [{low:.3f}, {high:.3f}] (constant {score.constant:.3f}, "
        in line
    )
    assert f"least {score.extreme:.3f}, annotators {score.annotators:.3f})" in line
    clear = sum(p.truth is not None for p in given)
    assert f"majority_accuracy of {clear} " in line
    assert "against the same" in line


def test_a_dialogue_twice_gives_the_same_values_and_wider_intervals_than_as_many_dialogues() -> None:
    given = predictions(40)
    apart = [dataclasses.replace(p, id=f"{p.id}-again", dialogue_id=f"{p.dialogue_id}-again") for p in given]
    beside = [dataclasses.replace(p, id=f"{p.id}-again") for p in given]
    once, spread, twice = (vote_scores(EMOTION, x, 2000, 0)[0] for x in (given, given + apart, given + beside))
    assert once.value == pytest.approx(spread.value) == pytest.approx(twice.value)
    assert np.ptp(spread.interval) < np.ptp(twice.interval)


def test_predictions_without_votes_or_probabilities_have_no_such_scores() -> None:
    given = predictions(8)
    assert vote_scores(EMOTION, [dataclasses.replace(p, votes={}) for p in given], 10, 0) == []
    assert vote_scores(EMOTION, [dataclasses.replace(p, log_probabilities=[]) for p in given], 10, 0) == []
    assert Row.from_dict({**dataclasses.asdict(score_rows("as is", given, EMOTION, 10, 0)[0]), "vote_scores": []}).n >= 1


def test_votes_come_through_a_line_of_predictions() -> None:
    prediction = dataclasses.replace(predictions(1)[0], annotators=3)
    assert Prediction.from_dict(prediction.to_dict()) == prediction
