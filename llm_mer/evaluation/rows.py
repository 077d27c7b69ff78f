"""Scores of one condition, task, language and subset, and all of an evaluation."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.errors import UserError
from llm_mer.evaluation.clusters import FEW, UTTERANCE, Clusters
from llm_mer.evaluation.conditions import AS_IS, DIALOGUE, Condition
from llm_mer.evaluation.dependence import Dependence, dependence_lines
from llm_mer.evaluation.metrics import compute_metrics, majority_baseline
from llm_mer.evaluation.proper_scores import ProbabilityScore, probability_scores
from llm_mer.evaluation.resampling import metric_intervals
from llm_mer.evaluation.subsets import EVERYTHING, TAG, subset_names, subsets_of
from llm_mer.evaluation.vote_scores import VoteScore, vote_line, vote_scores
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task
from llm_mer.storage.atomic_files import open_atomically, write_json_atomically
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.json_lines import read_json_lines
from llm_mer.storage.json_text import dump_json

PREDICTIONS, EVALUATION = "predictions.jsonl", "evaluation.json"


@dataclass(frozen=True)
class Area:
    """Area under a noise curve, MMSA's AUILC where the kind is ``missing``.

    ``area = Σ_i (x_{i+1} − x_i) · (y_i + y_{i+1}) / 2`` over the amounts x in rising order, for rates from 0 (as is).
    ``mean`` is the area divided by the span of the amounts.
    """

    kind: str
    task: str
    language: str
    metric: str
    amounts: list[float]
    area: float
    mean: float


@dataclass
class Row:
    """Scores of one condition, task, language and subset.

    ``metrics`` as in METRICS of the task's convention, ``intervals`` 95 % bootstrap of the headline ones, ``baseline`` what
    the row's own majority class or mean score would get: no constant answer does better on accuracy. ``by`` says what the
    subset is one of: a tag, a length, a turn. ``outside_share`` is the mean probability that a free answer of the language
    model would be none of the admissible ones, ``1/N Σ exp(outside_mass)``; None where no language model scored the answers
    or the file is older than this entry. ``probability_scores`` stand in rows of the answers as is. ``unit`` is what the
    intervals resample (``dialogue``, ``speaker``, ``utterance``), ``units`` how many of them there are; files older than
    these entries resampled utterances. ``vote_scores`` are over the utterances with votes, of which those that tie have no
    truth and are not among ``n``.
    """

    condition: str
    task: str
    language: str
    subset: str
    n: int
    unparseable_rate: float
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baseline: dict[str, float]
    by: str = TAG
    outside_share: float | None = None
    probability_scores: list[ProbabilityScore] = field(default_factory=list)
    unit: str = UTTERANCE
    units: int | None = None
    vote_scores: list[VoteScore] = field(default_factory=list)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Row:
        """Read plain values back; a metric that is null is NaN: not known."""
        known = {
            name: {metric: math.nan if value is None else value for metric, value in entry[name].items()}
            for name in ("metrics", "baseline")
        }
        scores = [ProbabilityScore.from_dict(score) for score in entry.get("probability_scores", [])]
        votes = [VoteScore.from_dict(score) for score in entry.get("vote_scores", [])]
        return cls(**{**entry, **known, "probability_scores": scores, "vote_scores": votes})


@dataclass
class Evaluation:
    """Everything a report needs about one checkpoint on one split.

    ``conditions`` are those asked for, in order; ``areas`` the areas under the curves of damage with several amounts.
    ``diagnostics`` are titles and part names of what the adapter tells about itself, so that a report needs no adapter;
    evaluations older than this entry have none. ``drawn`` says what ``--limit`` left of the split, None where it left all.
    ``dependence`` is what the swaps of the conditions say of each task, empty without such a condition.
    ``checkpoint_sha256`` is over the files the answers came from; a report compares it with the checkpoint around it.
    """

    name: str
    checkpoint: dict[str, Any]
    data: str
    split: str
    seed: int
    resamples: int
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    diagnostics: list[DiagnosticInfo] = field(default_factory=list)
    drawn: str | None = None
    checkpoint_sha256: str | None = None
    dependence: list[Dependence] = field(default_factory=list)

    def find(
        self, condition: str = AS_IS, task: str = "", language: str = EVERYTHING, subset: str = EVERYTHING
    ) -> Row | None:
        """The row of these, None when there is none."""
        for row in self.rows:
            if (row.condition, row.task, row.language, row.subset) == (condition, task, language, subset):
                return row
        return None

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json``."""
        write_json_atomically(folder / EVALUATION, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read it back. Raises :class:`UserError` where there is none."""
        path = folder / EVALUATION
        entry = read_json_object(path, f"{folder}: no {EVALUATION}; write it with `llm-mer evaluate`")
        entry["rows"] = [Row.from_dict(row) for row in entry["rows"]]
        entry["conditions"] = [
            Condition(**{**condition, "modalities": tuple(condition["modalities"])})
            for condition in entry.get("conditions", [])
        ]
        entry["diagnostics"] = [DiagnosticInfo.from_dict(info) for info in entry.get("diagnostics", [])]
        entry["dependence"] = [Dependence.from_dict(found) for found in entry.get("dependence", [])]
        entry["areas"] = [Area(**area) for area in entry.get("areas", [])]
        return cls(**entry)


def save_predictions(path: Path, by_condition: dict[str, list[Prediction]]) -> None:
    """One JSONL line a prediction, its condition beside it: any metric can be recomputed without the model."""
    with open_atomically(path) as stream:
        _write_predictions(stream, by_condition)


def _write_predictions(stream: IO[str], by_condition: dict[str, list[Prediction]]) -> None:
    for condition, predictions in by_condition.items():
        for prediction in predictions:
            line = {"condition": condition, **prediction.to_dict()}
            stream.write(dump_json(line) + "\n")


def save_evaluation(folder: Path, evaluation: Evaluation, by_condition: dict[str, list[Prediction]]) -> None:
    """Write ``evaluation.json`` and ``predictions.jsonl``: both are on the disk before either replaces what was there.

    Scores and predictions of two evaluations would else stand side by side where the second does not fit on the disk.

    Raises:
        UserError: a full disk, or a folder that cannot be written.
    """
    with open_atomically(folder / EVALUATION) as scores, open_atomically(folder / PREDICTIONS) as answers:
        _write_predictions(answers, by_condition)
        scores.write(dump_json(asdict(evaluation), 1))
        for stream in (answers, scores):
            stream.flush()
            os.fsync(stream.fileno())


def load_predictions(path: Path) -> dict[str, list[Prediction]]:
    """Read :func:`save_predictions` back.

    Raises:
        UserError: naming file and line: not JSON as :mod:`llm_mer.storage.json_text` reads it, or no prediction.
    """
    found: dict[str, list[Prediction]] = {}
    for where, entry in read_json_lines(path, ": damaged"):
        try:
            found.setdefault(entry.pop("condition"), []).append(Prediction.from_dict(entry))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: damaged: not a line of `llm-mer evaluate`: {error!r}") from None
    return found


def score_rows(
    condition: str,
    predictions: Sequence[Prediction],
    task: Task,
    resamples: int,
    seed: int,
    use_parsed: bool = False,
    by: Sequence[str] = (),
) -> list[Row]:
    """Rows of a task: each language and both together, the whole, every tagged subset and those of the groupings ``by``.

    ``use_parsed`` scores what a free generation was read as, None where it could not be read.
    """
    task_predictions = [p for p in predictions if p.task == task.name]
    known = [p for p in task_predictions if p.truth is not None]
    languages = sorted({p.language for p in known})
    rows = []
    for language in [*languages, *([EVERYTHING] if len(languages) > 1 else [])]:
        spoken = [p for p in known if language in (p.language, EVERYTHING)]
        for grouping, subset in [(TAG, EVERYTHING), *subsets_of(spoken, by)]:
            chosen = [p for p in spoken if subset == EVERYTHING or subset in subset_names(p, grouping)]
            voted = [p for p in task_predictions if p.votes and language in (p.language, EVERYTHING)]
            voted = [p for p in voted if subset == EVERYTHING or subset in subset_names(p, grouping)]
            truth = [p.truth for p in chosen]
            values = [p.parsed if use_parsed else p.value for p in chosen]
            log_probs = intervals = None
            if not use_parsed and task.kind == "classification" and condition != DIALOGUE:
                log_probs = np.array([p.log_probabilities for p in chosen])
            if not use_parsed and task.kind == "regression" and all(p.interval is not None for p in chosen):
                intervals = np.array([p.interval for p in chosen])
            metrics = compute_metrics(task, truth, values, log_probs, intervals)
            clusters = Clusters.of(chosen)
            rows.append(
                Row(
                    condition,
                    task.name,
                    language,
                    subset,
                    len(chosen),
                    metrics["unparseable_rate"],
                    {k: float(v) for k, v in metrics.items() if k not in ("n", "unparseable_rate")},
                    metric_intervals(task, truth, values, resamples, seed, clusters),
                    {k: float(v) for k, v in majority_baseline(task, truth).items() if k != "n"},
                    grouping,
                    None if use_parsed else _outside_share(chosen),
                    probability_scores(task, chosen, resamples, seed, clusters)
                    if condition == AS_IS and not use_parsed
                    else [],
                    clusters.unit,
                    clusters.count,
                    [] if use_parsed or condition == DIALOGUE else vote_scores(task, voted, resamples, seed),
                )
            )
    if len(languages) == 1:
        # A report asks for both languages together; with one language they are the same rows.
        rows += [dataclasses.replace(row, language=EVERYTHING) for row in list(rows)]
    return rows


def _outside_share(predictions: Sequence[Prediction]) -> float | None:
    """Mean probability outside the admissible answers; None where an answer has none (an adapter alone)."""
    masses = [p.outside_mass for p in predictions if p.outside_mass is not None]
    return float(np.mean(np.exp(masses))) if masses and len(masses) == len(predictions) else None


def table(evaluation: Evaluation) -> str:
    """Languages and subsets as text: score with its interval, n, baseline, unparseable rate, mass outside the answers.

    The file has every crossing.
    """
    lines = []
    rows = [row for row in evaluation.rows if EVERYTHING in (row.subset, row.language)]
    width = max([16, *(len(row.subset) for row in rows)])
    for row in rows:
        names = [name for name in ("accuracy", "weighted_f1", "ua", "mae", "rmse", "corr", "ccc") if name in row.intervals]
        shown = []
        for name in names:
            low, high = row.intervals[name]
            shown.append(
                f"{name} {row.metrics[name]:.3f} [{low:.3f}, {high:.3f}] "
                f"(baseline {row.baseline.get(name, float('nan')):.3f})"
            )
        size = f"n={row.n}" + ("" if row.unit == UTTERANCE else f" in {row.units} {row.unit}s")
        head = f"{row.condition:<28} {row.task:<10} {row.language:<3} {row.subset:<{width}} {size:<7}"
        outside = "" if row.outside_share is None else f"  outside the answers {row.outside_share:.3g}"
        lines.append(f"{head} {'  '.join(shown)}  unparseable {row.unparseable_rate:.3f}{outside}")
        if row.vote_scores:
            lines.append(f"{'':<28} {'':<10} {'':<3} {'votes':<{width}} {vote_line(row.vote_scores)}")
        calibrated = [
            f"{s.metric} {s.uncalibrated:.3f} → {s.value:.3f}" for s in row.probability_scores if s.uncalibrated is not None
        ]
        if calibrated and row.subset == EVERYTHING:
            lines.append(f"{'':<28} {'':<10} {'':<3} {'calibrated':<{width}} {'  '.join(calibrated)}")
    few = [row for row in rows if row.units is not None and row.units < FEW]
    if few:
        lines.append(
            f"intervals of rows with fewer than {FEW} dialogues, speakers or utterances are rough; the fewest here are "
            f"{min(row.units or 0 for row in few)}"
        )
    if any(row.units == 1 for row in few):
        lines.append("of a single one nothing can be resampled: its intervals have no width, and say nothing")
    for area in evaluation.areas:
        word = "AUILC" if area.kind == "missing" else "area"
        span = f"{area.amounts[0]:g} to {area.amounts[-1]:g}"
        lines.append(
            f"{area.kind:<28} {area.task:<10} {area.language:<3} {area.metric} {word} {area.area:.3f} over {span} "
            f"(mean {area.mean:.3f})"
        )
    lines += dependence_lines(evaluation.dependence)
    return "\n".join(lines)
