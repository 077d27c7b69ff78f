"""Scores of the evaluation split: what is printed is what was counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import get_task
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.evaluation import logged_metrics, print_evaluation, summarise
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer


def test_the_share_of_unparseable_answers_is_counted_and_every_language_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("emotion")
    answers = [Prediction(str(i), "emotion", "en", "joy", truth="joy") for i in range(4)]
    answers += [Prediction(str(i), "emotion", "xx", "anger", truth="joy") for i in range(3)]
    answers[0].value = None  # type: ignore[assignment]
    monkeypatch.setattr("llm_mer.training.evaluation.LANGUAGES", (*LANGUAGES, "xx"))
    metrics = summarise(answers, [task], "eval")
    assert metrics["eval_emotion_en_unparseable"] == 0.25
    print_evaluation(metrics, [task])
    assert capsys.readouterr().out.splitlines() == [
        "emotion [en] n=4: accuracy 0.750 (majority 1.000), unparseable 0.250 (scored answers)",
        "emotion [xx] n=3: accuracy 0.000 (majority 1.000), unparseable 0.000 (scored answers)",
    ]


def test_the_likelihood_of_the_truths_stands_beside_the_accuracy_that_hides_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Three of four are right, and the fourth is denied with certainty: worse than answers that say nothing."""
    task = get_task("polarity")
    right, wrong = [math.log(0.9), math.log(0.1)], [math.log(1 - 1e-9), math.log(1e-9)]
    names = task.label_names
    answers = [Prediction(f"u{i}", "polarity", "en", names[0], log_probabilities=right, truth=names[0]) for i in range(3)]
    answers.append(Prediction("u3", "polarity", "en", names[0], log_probabilities=wrong, truth=names[1]))
    metrics = summarise(answers, [task], "eval")
    assert metrics["eval_polarity_en_nll"] == pytest.approx((3 * -math.log(0.9) + 9 * math.log(10)) / 4)
    print_evaluation(metrics, [task])
    assert "accuracy 0.750 (majority 0.750), NLL 5.260 (uniform 0.693)" in capsys.readouterr().out


def test_proper_scores_are_means_over_tasks_and_languages() -> None:
    task = get_task("polarity")
    names, probs = task.label_names, [0.8, 0.2]
    answers = [Prediction("a", "polarity", "en", names[0], log_probabilities=list(map(math.log, probs)), truth=names[0])]
    answers += [
        Prediction(f"b{i}", "polarity", "zh", names[0], log_probabilities=list(map(math.log, probs)), truth=names[1])
        for i in range(3)
    ]
    metrics = summarise(answers, [task], "eval")
    assert metrics["eval_nll"] == pytest.approx((-math.log(0.8) - math.log(0.2)) / 2)
    assert metrics["eval_brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.8**2) / 2)
    assert "eval_nll" not in summarise([Prediction("a", "polarity", "en", names[0], truth=names[0])], [task], "eval")


@pytest.mark.parametrize(("metric", "greater"), [("nll", False), ("eval_brier", False), ("score", True)])
def test_less_of_a_proper_score_is_better(metric: str, greater: bool, tmp_path: Path) -> None:
    given = MerTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=metric, report_to="none")
    assert given.greater_is_better is greater


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("loss", False),
        ("eval_loss_lm", False),
        ("sentiment_en_mae", False),
        ("emotion_zh_nll", False),
        ("emotion_en_ua", True),
    ],
)
def test_a_metric_is_seen_the_right_way_round(metric: str, greater: bool, tmp_path: Path) -> None:
    given = MerTrainingArguments(output_dir=str(tmp_path), metric_for_best_model=metric, report_to="none")
    assert given.greater_is_better is greater


def test_the_metrics_that_may_choose_a_checkpoint_are_those_an_evaluation_logs(
    arguments: Callable[..., list[str]],
) -> None:
    changes = {"tasks": ["emotion", "sentiment"], "eval_strategy": "epoch", "limit_eval": 6, "limit_train": 8}
    trainer = build_trainer(parse_arguments(arguments(**changes)))
    logged = {name.removeprefix("eval_") for name in trainer.evaluate()}
    named = set(logged_metrics(trainer.evaluation))
    assert named <= logged
    counts = ("n", "unparseable", "majority", "mae", "time", "runtime", "second", "lm")
    assert all(name.rsplit("_", 1)[-1] in counts for name in logged - named), logged - named
