"""Scores of the evaluation split: a flat log for the trainer, lines for a person, and the adapter's own warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_mer.data.dataset import MerDataset
from llm_mer.evaluation.metrics import PROPER_SCORES, calibration_metrics, compute_metrics, headline_metric
from llm_mer.evaluation.proper_scores import answer_arrays
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import Task

CLASS_METRICS: tuple[str, ...] = ("accuracy", "weighted_f1", "ua")
SCORE_METRICS: tuple[str, ...] = ("mae", "rmse", "corr", "ccc")
"""Metrics that are logged where the task's convention has them."""


def summarise(predictions: Sequence[Prediction], tasks: Sequence[Task], prefix: str) -> dict[str, float]:
    """Metrics per task and language as a flat log, and ``{prefix}_score``, the mean of the headline metrics.

    Beside each stand ``n``, the share of answers that are none (``unparseable``), and what the majority class (or the mean
    score) would reach on the same truths; for classes also ``nll``, the mean negative log-likelihood of the truth (natural
    logarithm, ``ln C`` where all C answers are equally probable). ``{prefix}_nll`` and ``{prefix}_brier`` are means over
    classification tasks and languages, by which the best checkpoint may be chosen (:data:`PROPER_SCORES`).
    """
    metrics: dict[str, float] = {}
    headlines: list[float] = []
    for task in tasks:
        for language in sorted({p.language for p in predictions if p.task == task.name}):
            chosen = [p for p in predictions if p.task == task.name and p.language == language and p.truth is not None]
            if not chosen:
                continue
            truth = [p.truth for p in chosen]
            values = compute_metrics(task, truth, [p.value for p in chosen])
            stem = f"{prefix}_{task.name}_{language}"
            names = CLASS_METRICS if task.kind == "classification" else SCORE_METRICS
            metrics.update({f"{stem}_{name}": float(values[name]) for name in names if name in values})
            metrics[f"{stem}_n"] = float(len(chosen))
            metrics[f"{stem}_unparseable"] = float(values["unparseable_rate"])
            if task.kind == "classification":
                counts = np.unique([str(t) for t in truth], return_counts=True)[1]
                metrics[f"{stem}_majority"] = float(counts.max() / len(chosen))
                if all(p.log_probabilities for p in chosen):
                    of_truth = [p.log_probabilities[task.class_index(str(p.truth))] for p in chosen]
                    metrics[f"{stem}_nll"] = -float(np.mean(of_truth))
            else:
                scores = np.array([float(t) for t in truth if t is not None])
                metrics[f"{stem}_mean_mae"] = float(np.abs(scores - scores.mean()).mean())
            headlines.append(float(values[headline_metric(task)]))
    for name, found in _mean_proper_scores(predictions, tasks).items():
        metrics[f"{prefix}_{name}"] = found
    metrics[f"{prefix}_score"] = float(np.mean(headlines)) if headlines else 0.0
    return metrics


def logged_metrics(dataset: MerDataset) -> list[str]:
    """Names, without ``eval_``, of the metrics that an evaluation of these questions logs and a checkpoint may be chosen by.

    Losses by name (``loss_lm``, …) come on top.
    """
    names = ["score", "loss"]
    if any(question.task.kind == "classification" for question in dataset.questions):
        names += PROPER_SCORES
    for task in dataset.tasks:
        for language in sorted({dataset.language(question.row) for question in dataset.questions if question.task is task}):
            some: list[Any] = [task.label_names[0]] if task.kind == "classification" else [*task.require_range()]
            found = compute_metrics(task, some, some)
            logged = (*CLASS_METRICS, *SCORE_METRICS)
            own = [name for name in logged if name in found] + (["nll"] if task.kind == "classification" else [])
            names += [f"{task.name}_{language}_{name}" for name in own]
    return names


def _mean_proper_scores(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> dict[str, float]:
    """``nll`` and ``brier``, the means over classification tasks and languages; empty where no label has probabilities."""
    found: dict[str, list[float]] = {name: [] for name in PROPER_SCORES}
    for task in tasks:
        known = [p for p in predictions if p.task == task.name and p.truth is not None and p.log_probabilities]
        if task.kind != "classification":
            continue
        for language in sorted({p.language for p in known}):
            log_probs, truth = answer_arrays(task, [p for p in known if p.language == language])
            values = calibration_metrics(truth, log_probs)
            for name, entries in found.items():
                entries.append(values[name])
    return {name: float(np.mean(entries)) for name, entries in found.items() if entries}


def print_evaluation(metrics: dict[str, float], tasks: Sequence[Task]) -> None:
    """Scores of the evaluation split in every language it has, each with n and the trivial baseline."""
    for task in tasks:
        for language in LANGUAGES:
            stem = f"eval_{task.name}_{language}"
            if f"{stem}_n" not in metrics:
                continue
            n = int(metrics[f"{stem}_n"])
            if task.kind == "classification":
                line = f"accuracy {metrics[f'{stem}_accuracy']:.3f} (majority {metrics[f'{stem}_majority']:.3f})"
                if (nll := metrics.get(f"{stem}_nll")) is not None:
                    line += f", NLL {nll:.3f} (uniform {math.log(task.num_classes):.3f})"
            else:
                line = f"MAE {metrics[f'{stem}_mae']:.3f} (mean {metrics[f'{stem}_mean_mae']:.3f}), "
                line += f"corr {metrics[f'{stem}_corr']:.3f}"
                if (ccc := metrics.get(f"{stem}_ccc")) is not None:
                    line += f", CCC {ccc:.3f}"
            print(
                f"{task.name} [{language}] n={n}: {line}, unparseable {metrics[f'{stem}_unparseable']:.3f} (scored answers)"
            )
