"""Formatting of numbers, metrics, languages and answers in a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_mer.evaluation.clusters import UTTERANCE
from llm_mer.evaluation.rows import Row
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.prompting.tasks import Task
from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Cell
from llm_mer.reporting.facts import LoadedEvaluation

METRIC_LABELS: dict[str, tuple[str, str]] = {
    "accuracy": ("accuracy", "↑"),
    "weighted_f1": ("weighted F1", "↑"),
    "macro_f1": ("macro F1", "↑"),
    "wa": ("WA (accuracy)", "↑"),
    "ua": ("UA (mean recall)", "↑"),
    "ova_accuracy": ("one-vs-all accuracy", "↑"),
    "nll": ("negative log-likelihood", "↓"),
    "brier": ("Brier score", "↓"),
    "ece": ("ECE, 15 bins", "↓"),
    "mae": ("MAE", "↓"),
    "rmse": ("RMSE", "↓"),
    "corr": ("Pearson r", "↑"),
    "ccc": ("CCC", "↑"),
    "acc7": ("Acc-7", "↑"),
    "acc5": ("Acc-5", "↑"),
    "acc3": ("Acc-3", "↑"),
    "acc2": ("Acc-2", "↑"),
    "acc2_weak": ("Acc-2, weak", "↑"),
    "f1": ("F1", "↑"),
    "has0_acc2": ("Acc-2, negative / not", "↑"),
    "has0_f1": ("F1, negative / not", "↑"),
    "non0_acc2": ("Acc-2, negative / positive", "↑"),
    "non0_f1": ("F1, negative / positive", "↑"),
    "r2": ("R²", "↑"),
    "coverage80": ("truths in the 80 % interval", "→ 0.8"),
}


def format_number(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "–" if value != value else f"{value:.3f}"


def format_interval(interval: Sequence[float]) -> str:
    """``[low, high]``."""
    return f"[{format_number(interval[0])}, {format_number(interval[1])}]"


def describe_resampling(rows: Sequence[Row]) -> str:
    """`` of whole dialogues (12, 14)``: the unit that intervals resample; ``, utterance by utterance`` by default."""
    grouped: dict[str, list[int]] = {}
    for row in rows:
        if row.unit != UTTERANCE and row.units is not None:
            grouped.setdefault(row.unit, []).append(row.units)
    named = " and ".join(f"{unit}s ({', '.join(map(str, counts))})" for unit, counts in grouped.items())
    return f" of whole {named}" if named else ", utterance by utterance"


def metric_label(name: str) -> str:
    """A metric's name and which direction is better."""
    label, direction = METRIC_LABELS.get(name, (name, ""))
    return f"{label} {direction}".strip()


def language_label(language: str) -> str:
    """The language, or ``all languages``."""
    return "all languages" if language == EVERYTHING else language


def score_cell(row: Row | None, metric: str, *below: str) -> Cell:
    """A metric with its interval below; a dash if the row or the metric does not exist."""
    if row is None or metric not in row.metrics:
        return Cell("–")
    interval = (format_interval(row.intervals[metric]),) if metric in row.intervals else ()
    return Cell(format_number(row.metrics[metric]), (*interval, *below))


def language_columns(main: LoadedEvaluation) -> list[str]:
    """Languages, and all of them together if there are several."""
    return [*main.languages, *([EVERYTHING] if len(main.languages) > 1 else [])]


def subset_names_of(main: LoadedEvaluation, task: Task, by: str) -> list[str]:
    """Names of the subsets of a grouping, without the whole."""
    rows = main.evaluation.rows
    return list(dict.fromkeys(r.subset for r in rows if (r.task, r.by) == (task.name, by) and r.subset != EVERYTHING))


def condition_names_of(main: LoadedEvaluation, task: Task) -> list[str]:
    """Names of a task's conditions, in the evaluation's order."""
    return list(dict.fromkeys(row.condition for row in main.evaluation.rows if row.task == task.name))


def verdict_tone(holds: bool | None) -> str:
    """The tone of a verdict."""
    return "unsure" if holds is None else "good" if holds else "bad"


def verdict_label(holds: bool) -> str:
    """Short form for a table."""
    return "yes" if holds else "no"


def option_text(value: Any) -> str:
    """An option's value as text."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def with_key(caption: str, names: plots.PlotNames) -> str:
    """The caption, with a key for names that the plot's font lacks."""
    return f"{caption} ({names.key}.)" if names.key else caption


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` evenly spaced items from first to last."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


def answer_text(value: Any) -> str:
    """A label as it is, a score with its decimals."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
