"""Confusion matrices, scores against truths, and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.metrics import class_indices, interval_coverage
from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Block, Cell, Picture, Section, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import METRIC_LABELS, format_number, with_key

MOST_CLASSES = 40
"""Rows and columns of a confusion matrix that can be drawn and read; the memory a picture takes grows with their square."""


def merge_rare_classes(counts: np.ndarray, names: Sequence[str], most: int = MOST_CLASSES) -> tuple[np.ndarray, list[str]]:
    """The classes with the most truths and answers, in their order, and all others as one: ``(C, C)`` to ``(K, K)``.

    The sum stays what it is.
    """
    size = len(names)
    if size <= most:
        return counts, list(names)
    often = np.argsort(-(counts.sum(axis=1) + counts.sum(axis=0)), kind="stable")[: most - 1]
    place = np.full(size, most - 1)
    place[np.sort(often)] = np.arange(most - 1)
    merged = np.zeros((most, most), dtype=counts.dtype)
    np.add.at(merged, (place[:, None], place[None]), counts)
    return merged, [*(names[i] for i in np.sort(often)), f"{size - most + 1} others"]


def confusion_section(main: LoadedEvaluation) -> Section:
    """Confusion matrices of classes, by language."""
    section = Section("confusion", "Confusion")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            if not known:
                continue
            counts = np.zeros((task.num_classes, task.num_classes), dtype=int)
            true, answer = (class_indices(task, values) for values in ([p.truth for p in known], [p.value for p in known]))
            np.add.at(counts, (true, answer), 1)
            counts, shown = merge_rare_classes(counts, task.label_names)
            names = plots.PlotNames.of(shown)
            caption = (
                f"{task.name}, {language}, n={len(known)}: truth in rows, answer in columns; in each cell the count and the "
                "share of its row, which is also the colour."
            )
            if task.num_classes > len(shown):
                caption += f" Of {task.num_classes} classes the {len(shown) - 1} most frequent, all others as one."
            section.blocks.append(Picture(plots.draw_confusion(counts, names.shown), with_key(caption, names)))
    return section


def score_plot_section(main: LoadedEvaluation) -> Section:
    """Answered against true scores, and how often intervals contain the truth."""
    from llm_mer.scoring.score_distribution import ScoreDistribution

    section = Section("score-plots", "Scores and their intervals")
    levels = [round(0.1 * i, 1) for i in range(1, 10)]
    for task in main.tasks:
        if task.kind != "regression":
            continue
        observed: dict[str, list[float]] = {}
        utterance_counts = []
        for language in main.languages:
            known = main.known(AS_IS, task.name, language)
            row = main.evaluation.find(AS_IS, task.name, language)
            if not known or row is None:
                continue
            truth = np.array([float(p.truth) for p in known if p.truth is not None])
            value = np.array([float(p.value) for p in known])
            intervals = np.array([p.interval for p in known]) if all(p.interval is not None for p in known) else None
            low, high = task.require_range()
            bounds = (min(low, truth.min(), value.min()), max(high, truth.max(), value.max()))
            caption = f"{task.name}, {language}, n={row.n}: answer against truth; the dashed line is answer = truth."
            for name in ("mae", "corr", "ccc"):
                caption += f" {METRIC_LABELS[name][0]} {format_number(row.metrics[name])}." if name in row.metrics else ""
            if intervals is not None and "coverage80" in row.metrics:
                caption += f" Bars are 80 % intervals; {format_number(row.metrics['coverage80'])} of the truths lie inside."
            section.blocks.append(Picture(plots.draw_score_scatter(truth, value, intervals, bounds), caption))
            if all(p.probabilities and len(p.probabilities) == len(p.log_probabilities) for p in known):
                grid = np.array([float(score) for score in known[0].probabilities])
                spread = ScoreDistribution(grid, np.exp([p.log_probabilities for p in known]))
                observed[language] = [interval_coverage(truth, spread.interval(level)) for level in levels]
                utterance_counts.append(f"{language} n={len(known)}")
        if observed:
            caption = (
                f"{task.name}, {', '.join(utterance_counts)}: share of truths inside the central interval of each mass. "
                "Below the dashed line the distributions are too narrow, above it too wide."
            )
            section.blocks.append(Picture(plots.draw_coverage(levels, observed), caption))
    return section


def calibration_section(main: LoadedEvaluation) -> Section:
    """Reliability of class probabilities."""
    section = Section("calibration", "Calibration")
    for task in main.tasks:
        if task.kind != "classification":
            continue
        answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        counts_and_errors = []
        for language in main.languages:
            known = [p for p in main.known(AS_IS, task.name, language) if len(p.log_probabilities) == task.num_classes]
            row = main.evaluation.find(AS_IS, task.name, language)
            if not known or row is None:
                continue
            probabilities = np.exp(np.array([p.log_probabilities for p in known], dtype=np.float64))
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            true = class_indices(task, [p.truth for p in known])
            answers[language] = (probabilities.max(axis=1), probabilities.argmax(axis=1) == true)
            counts_and_errors.append(f"{language} n={len(known)}, ECE {format_number(row.metrics.get('ece', float('nan')))}")
        if answers:
            caption = (
                f"{task.name}; {'; '.join(counts_and_errors)}: share of correct answers against confidence, in 15 bins; "
                "marker area is the share of answers in the bin, counted below. Below the dashed line it is overconfident."
            )
            section.blocks.append(Picture(plots.draw_reliability(answers), caption))
    section.blocks += _temperature_tables(main)
    return section


def _temperature_tables(main: LoadedEvaluation) -> list[Block]:
    """Scores of the probabilities without and with the checkpoint's temperatures, if it has any."""

    def cell(value: float | None, interval: tuple[float, float] | None) -> Cell:
        if value is None or interval is None:
            return Cell("–")
        return Cell(format_number(value), (f"{format_number(interval[0])} to {format_number(interval[1])}",))

    lines = []
    for task in main.tasks:
        for language in main.languages:
            row = main.evaluation.find(AS_IS, task.name, language)
            for score in [] if row is None else row.probability_scores:
                if row is None or score.uncalibrated is None:
                    continue
                lines.append(
                    [
                        Cell(task.name),
                        Cell(language),
                        Cell(score.metric),
                        Cell(str(row.n)),
                        cell(score.uncalibrated, score.uncalibrated_interval),
                        cell(score.value, score.interval),
                        cell(score.value - score.uncalibrated, score.difference_interval),
                    ]
                )
    if not lines:
        return []
    caption = (
        "Probabilities without and with the temperatures that the checkpoint keeps, fitted on the validation split; lower "
        "is better. NLL and CRPS of the true answer, Brier score and ECE of classes; 95 % intervals over whole dialogues."
    )
    return [Table(["task", "language", "metric", "n", "uncalibrated", "calibrated", "change"], lines, caption, heads=3)]
