"""Scores of a comparison fold by fold, and the answers of all folds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_mer.data.folds import Folds
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.metrics import headline_metric
from llm_mer.evaluation.resampling import as_arrays, statistics_of
from llm_mer.evaluation.spread import Spread
from llm_mer.experiments.comparison.results import RunResult
from llm_mer.experiments.options import CompareConfig
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task

Answers = dict[str, list[Prediction]]
"""Predictions of one run by condition."""


@dataclass
class FoldScore:
    """One metric of a system on the test part of one fold, as is and in all languages.

    ``values`` are in the order of the seeds. ``baseline`` is of the commonest class (or mean score) of the training part.
    """

    system: str
    task: str
    metric: str
    fold: str
    n: int
    baseline: float
    values: list[float | None]


@dataclass
class FoldTable:
    """The folds of a comparison, as ``folds.json`` beside it has them in full, and their scores."""

    by: str
    names: list[str]
    validation_by: str | None
    validation: float | None
    seed: int | None
    scores: list[FoldScore] = field(default_factory=list)


def pool_folds(results: Sequence[RunResult], answers: Sequence[Answers]) -> list[Answers]:
    """The answers of each seed, those of all its folds together; in each an utterance is tested once."""
    pooled: dict[int, Answers] = {}
    for result, by_condition in zip(results, answers, strict=True):
        of_seed = pooled.setdefault(result.seed, {})
        for condition, predictions in by_condition.items():
            of_seed.setdefault(condition, []).extend(predictions)
    return list(pooled.values())


def training_constant(task: Task, result: RunResult) -> str | float:
    """The commonest class of a run's training questions, or the mean of its training scores."""
    entry = result.baselines[task.name]
    if task.kind == "classification":
        counts: dict[str, int] = entry["counts"]
        return max(counts, key=counts.__getitem__)
    return float(entry["mean"])


def training_constants(task: Task, results: Sequence[RunResult], answers: Sequence[Answers]) -> dict[str, str | float]:
    """The constant answer to each utterance: that of the training part of the fold that tests it."""
    return {
        p.id: training_constant(task, result)
        for result, by_condition in zip(results, answers, strict=True)
        for p in by_condition[AS_IS]
    }


def constant_score(task: Task, metric: str, tested: Mapping[str, Prediction], constants: Mapping[str, str | float]) -> float:
    """What the constant answers score on these utterances."""
    truth, constant = as_arrays(task, [p.truth for p in tested.values()], [constants[name] for name in tested])
    return float(statistics_of(task)[metric](truth[None], constant[None])[0])


def tabulate_folds(
    folds: Folds, config: CompareConfig, runs: Mapping[str, list[RunResult]], answers: Mapping[str, list[Answers]]
) -> FoldTable:
    """Scores of each system, task and fold."""
    table = FoldTable(folds.by, folds.names, folds.validation_by, folds.validation, folds.seed)
    for system, results in runs.items():
        for name, entry in results[0].tasks.items():
            task = Task.from_checkpoint(name, entry)
            constants = training_constants(task, results, answers[system])
            for metric in [m for m in config.metrics if m in statistics_of(task)] or [headline_metric(task)]:
                for fold in folds.names:
                    own = [
                        {p.id: p for p in by_condition[AS_IS] if p.task == name and p.truth is not None}
                        for result, by_condition in zip(results, answers[system], strict=True)
                        if result.fold == fold
                    ]
                    if own[0]:
                        baseline = constant_score(task, metric, own[0], constants)
                        values = [_score(task, metric, tested) for tested in own]
                        table.scores.append(FoldScore(system, name, metric, fold, len(own[0]), baseline, values))
    return table


def _score(task: Task, metric: str, tested: Mapping[str, Prediction]) -> float | None:
    """None where no answer could be read."""
    truth: list[Any] = [p.truth for p in tested.values()]
    true, guess = as_arrays(task, truth, [p.value for p in tested.values()])
    return float(statistics_of(task)[metric](true[None], guess[None])[0]) if len(true) else None


def fold_lines(table: FoldTable) -> list[str]:
    """A Markdown table for each task and metric: folds down, systems across, their mean and deviation last."""
    lines: list[str] = []
    systems = list(dict.fromkeys(score.system for score in table.scores))
    for task, metric in dict.fromkeys((score.task, score.metric) for score in table.scores):
        own = [score for score in table.scores if (score.task, score.metric) == (task, metric)]
        found = {(score.system, score.fold): score for score in own}
        lines += [f"### Fold by fold: {task}, {metric}\n", f"| fold | n | *majority or mean* | {' | '.join(systems)} |"]
        lines.append("|---|---|---|" + "---|" * len(systems))
        for fold in dict.fromkeys(score.fold for score in own):
            first = next(found[system, fold] for system in systems if (system, fold) in found)
            cells = [str(Spread.of(found[s, fold].values)) if (s, fold) in found else "" for s in systems]
            lines.append(f"| {fold} | {first.n} | {first.baseline:.3f} | {' | '.join(cells)} |")
        constants = Spread.of([score.baseline for score in own if score.system == own[0].system])
        over = [Spread.of([v for score in own if score.system == s for v in score.values]) for s in systems]
        lines.append(f"| **mean ± std** | | {constants} | {' | '.join(map(str, over))} |\n")
    seeds = len(table.scores[0].values)
    validation = "validation"
    if table.validation:
        validation = f"{table.validation:g} of each training part, whole {table.validation_by}s"
    lines.append(
        f"{len(table.names)} folds by {table.by}, {seeds} run(s) on each; where an epoch is chosen, it is on {validation}, "
        "never on what is tested. *Majority or mean* is the commonest class (or mean score) of each fold's training part. ± "
        "is the standard deviation over folds and runs (in a fold over runs), which is no standard error: folds share most "
        "of their training data. The tables above are of the answers of all folds together, each utterance tested once a "
        "run.\n"
    )
    return lines
