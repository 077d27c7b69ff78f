"""The table of a comparison: every row from the predictions on disk, and its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.data.folds import Folds
from llm_mer.errors import UserError
from llm_mer.evaluation.clusters import Clusters, units_of
from llm_mer.evaluation.conditions import AS_IS, DIALOGUE
from llm_mer.evaluation.metrics import headline_metric, majority_baseline
from llm_mer.evaluation.p_values import PValue, adjusted_p
from llm_mer.evaluation.resampling import (
    as_arrays,
    format_estimate,
    paired_difference_over_seeds,
    statistics_of,
)
from llm_mer.evaluation.rows import PREDICTIONS, load_predictions
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.experiments.comparison.fold_table import (
    FoldTable,
    constant_score,
    fold_lines,
    pool_folds,
    tabulate_folds,
    training_constants,
)
from llm_mer.experiments.comparison.results import RunResult
from llm_mer.experiments.comparison.systems import FULL, System
from llm_mer.experiments.options import CompareConfig
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task


@dataclass
class Cell:
    """One metric of a system: mean and standard deviation over seeds, and against the reference on the same samples."""

    mean: float
    std: float
    interval: tuple[float, float]
    difference: float | None = None
    p_value: PValue | None = None


@dataclass
class TableRow:
    """A system under a condition, on a task, language and subset."""

    system: str
    condition: str
    task: str
    language: str
    subset: str
    metric: str
    n: int
    seeds: int
    baseline: float
    reference: str | None
    """The system that the cell's difference and p-value are against; None where it was compared with none."""
    cell: Cell
    unit: str = "utterance"
    units: int | None = None
    """What the interval resamples, and how many of them there are."""
    unparseable_rate: float = 0.0
    """Share of answers of all seeds that are none. Scored answers always are one."""


@dataclass
class DecoderGain:
    """The dialogue decoder's answers minus those as is: the same system and utterances."""

    system: str
    task: str
    language: str
    metric: str
    n: int
    seeds: int
    difference: float
    interval: tuple[float, float]
    p_value: PValue


@dataclass
class Comparison:
    """Everything ``comparison.json`` holds. ``reference`` is the first system, which other adapters are compared with."""

    reference: str
    runs: list[RunResult]
    rows: list[TableRow]
    decoder_gains: list[DecoderGain] = field(default_factory=list)
    folds: FoldTable | None = None
    """Scores fold by fold; the rows then are of the answers of all folds together."""


SelectedPredictions = dict[str, list[dict[str, Prediction]]]
"""System name to one ``{utterance id: prediction}`` a seed."""


def select_predictions(
    loaded: dict[str, list[dict[str, list[Prediction]]]], condition: str, task: str, language: str, subset: str
) -> SelectedPredictions:
    """The predictions of a condition, task, language and subset, by system and seed."""
    found: SelectedPredictions = {}
    for system, seeds in loaded.items():
        rows = [
            {
                p.id: p
                for p in by_condition.get(condition, [])
                if p.task == task
                and p.truth is not None
                and language in (p.language, EVERYTHING)
                and (subset == EVERYTHING or subset in p.tags)
            }
            for by_condition in seeds
        ]
        if rows and all(rows):
            found[system] = rows
    return found


def score_cell(
    chosen: SelectedPredictions, system: str, reference: str, task: Task, metric: str, resamples: int
) -> tuple[Cell, Clusters, list[Any]]:
    """One cell, with what it resamples and the truths."""
    ids = sorted(chosen[system][0])
    truth = [chosen[system][0][i].truth for i in ids]
    clusters = Clusters.of([chosen[system][0][i] for i in ids])
    values = [[seed[i].value for i in ids] for seed in chosen[system]]
    statistic = statistics_of(task)[metric]
    scores = []
    for answers in values:
        true, guess = as_arrays(task, truth, answers)
        scores.append(float(statistic(true[None], guess[None])[0]) if len(true) else math.nan)
    _, interval, _ = paired_difference_over_seeds(task, metric, truth, values, None, resamples, 0, clusters)
    cell = Cell(float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0, interval)
    other = chosen.get(reference)
    if system != reference and other is not None and sorted(other[0]) == ids and len(other) == len(values):
        against = [[seed[i].value for i in ids] for seed in other]
        cell.difference, _, cell.p_value = paired_difference_over_seeds(
            task, metric, truth, values, against, resamples, 0, clusters
        )
    return cell, clusters, truth


def check_precision(runs: dict[str, list[RunResult]], loaded: dict[str, list[dict[str, list[Prediction]]]]) -> None:
    """Refuse to compare runs of one ``dtype`` whose answers were computed in several, as those of ``auto`` may be.

    Raises:
        UserError: naming two runs, one of which was finished on another kind of machine.
    """
    first: dict[str, tuple[str, str]] = {}
    for system, results in runs.items():
        for result, by_condition in zip(results, loaded[system], strict=True):
            precision = next((p.precision for p in by_condition.get(AS_IS, [])), None)
            if precision is None:  # an adapter alone
                continue
            dtype, name = str(result.options["model"].get("dtype")), f"{system}, seed {result.seed}"
            other, before = first.setdefault(dtype, (name, precision))
            if precision != before:
                raise UserError(
                    f"{name} was computed in {precision}, {other} in {before}, though dtype is {dtype} for both; run all on "
                    f"one kind of machine, or name the type: --overrides dtype={before}"
                )


def tabulate(
    config: CompareConfig, systems: Sequence[System], runs: dict[str, list[RunResult]], folds: Folds | None = None
) -> Comparison:
    """Every row from the predictions on disk, those of all folds together.

    The reference of differences and p-values is an ablation's own adapter and backbone in full, and the first system for
    the others. The baseline is the commonest class (or mean score) of the row's truths, with folds that of each fold's own
    training part.
    """
    folder = Path(config.output)
    by_run = {
        s.name: [load_predictions(folder / s.folder(r.seed, r.fold) / PREDICTIONS) for r in runs[s.name]] for s in systems
    }
    check_precision(runs, by_run)
    loaded = {name: pool_folds(results, by_run[name]) for name, results in runs.items()}
    reference = systems[0].name
    full = {(s.adapter, s.backbone): s.name for s in systems if s.ablation == FULL}
    against = {s.name: reference if s.ablation == FULL else full[s.adapter, s.backbone] for s in systems}
    first = runs[reference][0]
    conditions = list(dict.fromkeys(name for seeds in loaded.values() for by in seeds for name in by))
    rows: list[TableRow] = []
    gains: list[DecoderGain] = []
    for task_name, entry in first.tasks.items():
        task = Task.from_checkpoint(task_name, entry)
        metrics = [m for m in config.metrics if m in statistics_of(task)] or [headline_metric(task)]
        languages = sorted({p.language for p in loaded[reference][0][AS_IS]})
        if len(languages) > 1:
            languages.append(EVERYTHING)
        cells = product(conditions, languages, [EVERYTHING, *config.subsets], metrics)
        for condition, language, subset, metric in cells:
            chosen = select_predictions(loaded, condition, task_name, language, subset)
            for system in chosen:
                cell, clusters, truth = score_cell(chosen, system, against[system], task, metric, config.resamples)
                if folds is None:
                    baseline = float(majority_baseline(task, truth)[metric])
                else:
                    constants = training_constants(task, runs[system], by_run[system])
                    baseline = constant_score(task, metric, chosen[system][0], constants)
                unparseable = np.mean([p.value is None for seed in chosen[system] for p in seed.values()])
                where = (system, condition, task_name, language, subset, metric)
                other = against[system] if cell.p_value is not None else None
                counts = (len(truth), len(config.seeds), baseline)
                unit = (clusters.unit, clusters.count, float(unparseable))
                rows.append(TableRow(*where, *counts, other, cell, *unit))
        for language, metric in product(languages, metrics):
            gains += decoder_gains(loaded, task, language, metric, config.resamples)
    for family in dict.fromkeys((row.condition, row.metric) for row in rows):
        tested = [row.cell for row in rows if (row.condition, row.metric) == family and row.cell.p_value is not None]
        for one, p_value in zip(tested, adjusted_p([c.p_value for c in tested if c.p_value is not None]), strict=True):
            one.p_value = p_value
    by_fold = None if folds is None else tabulate_folds(folds, config, runs, by_run)
    return Comparison(reference, [r for results in runs.values() for r in results], rows, gains, by_fold)


def decoder_gains(
    loaded: dict[str, list[dict[str, list[Prediction]]]], task: Task, language: str, metric: str, resamples: int
) -> list[DecoderGain]:
    """What the dialogue decoder adds to each system; nothing where it did not run."""
    before = select_predictions(loaded, AS_IS, task.name, language, EVERYTHING)
    after = select_predictions(loaded, DIALOGUE, task.name, language, EVERYTHING)
    found = []
    for system, decoded in after.items():
        ids = sorted(decoded[0])
        truth = [decoded[0][i].truth for i in ids]
        first, second = ([[seed[i].value for i in ids] for seed in seeds] for seeds in (decoded, before[system]))
        clusters = Clusters.of([decoded[0][i] for i in ids])
        difference = paired_difference_over_seeds(task, metric, truth, first, second, resamples, 0, clusters)
        found.append(DecoderGain(system, task.name, language, metric, len(ids), len(decoded), *difference))
    return found


def markdown(comparison: Comparison) -> str:
    """The table: systems down, ``task language subset`` across; then cost. Differences with p < 0.05 are marked."""
    columns = list(dict.fromkeys((r.condition, r.task, r.language, r.subset, r.metric) for r in comparison.rows))
    systems = list(dict.fromkeys(r.system for r in comparison.rows))
    found = {(r.system, r.condition, r.task, r.language, r.subset, r.metric): r for r in comparison.rows}
    lines = []
    for condition in dict.fromkeys(c[0] for c in columns):
        here = [c for c in columns if c[0] == condition]
        lines.append(f"### {condition[0].upper() + condition[1:]}\n")
        headers = [
            f"{task} {language}{'' if subset == EVERYTHING else ' ' + subset}, {metric}"
            for _, task, language, subset, metric in here
        ]
        lines.append("| system | " + " | ".join(headers) + " |")
        lines.append("|---|" + "---|" * len(here))
        baselines = []
        for column in here:
            row = next(found[(s, *column)] for s in systems if (s, *column) in found)
            baselines.append(f"{row.baseline:.3f} (n={row.n})")
        lines.append("| *majority or mean* | " + " | ".join(baselines) + " |")
        for system in systems:
            cells = []
            for column in here:
                entry = found.get((system, *column))
                cells.append("" if entry is None else format_cell(entry.cell, entry.seeds))
            if any(cells):
                lines.append(f"| {system} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [] if comparison.folds is None else fold_lines(comparison.folds)
    lines += decoder_gain_table(comparison.decoder_gains)
    lines += [
        "### Cost\n",
        "| system | adapter parameters | trainable | training s | ms a step | ms an answer |",
        "|---|---|---|---|---|---|",
    ]
    for system in systems:
        own = [r for r in comparison.runs if r.system == system]
        seconds, steps = float(np.mean([r.train_seconds for r in own])), float(np.mean([r.steps for r in own]))
        answer = np.mean([r.milliseconds_per_answer for r in own])
        lines.append(
            f"| {system} | {own[0].parameters['adapter']:,} | {own[0].parameters['trainable']:,} | {seconds:.0f} | "
            f"{1000 * seconds / max(steps, 1):.0f} | {answer:.1f} |"
        )
    lines.append(
        f"\nMean over {comparison.rows[0].seeds} seed(s), ± their standard deviation, [95 % bootstrap interval over "
        f"{units_of(comparison.rows)}, with the spread of the seeds where there are several]; p is of the paired bootstrap, "
        "adjusted for the number of p of a table and metric (Benjamini and Hochberg), ≤ where no resample lies on the other "
        "side of zero, * where it is below 0.05: "
        f"{describe_references(comparison)}. {say_unparseable(comparison)}"
    )
    return "\n".join(lines)


def say_unparseable(comparison: Comparison) -> str:
    """The rate of answers that are none, the largest of a row."""
    worst = max(row.unparseable_rate for row in comparison.rows)
    return f"Unparseable: up to {worst:.3f} of a row." if worst else "Answers are scored, so none is unparseable."


def describe_references(comparison: Comparison) -> str:
    """``of A and B against C``, for every reference of the rows."""
    by_reference: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.reference is not None and row.system not in by_reference.setdefault(row.reference, []):
            by_reference[row.reference].append(row.system)
    return "; ".join(f"of {', '.join(names)} against {other}" for other, names in by_reference.items()) or "none here"


def decoder_gain_table(gains: Sequence[DecoderGain]) -> list[str]:
    """Systems down, ``task language, metric`` across; no line without gains."""
    if not gains:
        return []
    columns = list(dict.fromkeys((g.task, g.language, g.metric, g.n) for g in gains))
    found = {(g.system, g.task, g.language, g.metric, g.n): g for g in gains}
    lines = [
        "### Gain of the dialogue decoder\n",
        "| system | " + " | ".join(f"{task} {language}, {metric} (n={n})" for task, language, metric, n in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for system in dict.fromkeys(g.system for g in gains):
        cells = []
        for column in columns:
            gain = found.get((system, *column))
            cells.append("" if gain is None else format_difference(gain.difference, gain.interval, gain.p_value))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return [*lines, "\nDecoder minus as is, on the same utterances.\n"]


def format_difference(value: float, interval: tuple[float, float], p_value: PValue) -> str:
    """A difference with its interval and p, marked where p is below 0.05; ``undefined`` where there is none."""
    return format_estimate(value, interval, "+") + _format_p(p_value)


def format_cell(cell: Cell, seeds: int) -> str:
    """``0.712 ± 0.010 [0.650, 0.770], p 0.012*``; ``undefined`` in the place of what there is none of."""
    text = format_estimate(cell.mean, cell.interval)
    if seeds > 1 and not math.isnan(cell.std):
        value, _, rest = text.partition(" ")
        text = f"{value} ± {cell.std:.3f} {rest}"
    return text if cell.p_value is None else text + _format_p(cell.p_value)


def _format_p(p_value: PValue) -> str:
    if math.isnan(p_value.value):
        return ""
    return f", {p_value}" + ("*" if p_value.is_significant else "")
