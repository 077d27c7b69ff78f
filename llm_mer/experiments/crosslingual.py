"""``llm-mer crosslingual``: trained on English, Chinese or both × tested on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from llm_mer.evaluation.clusters import Clusters, units_of
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.metrics import headline_metric, majority_baseline
from llm_mer.evaluation.p_values import PValue, adjusted_p
from llm_mer.evaluation.resampling import format_estimate, paired_difference_over_seeds, statistics_of
from llm_mer.evaluation.rows import PREDICTIONS, load_predictions
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.experiments.comparison.compare import compare
from llm_mer.experiments.comparison.systems import FULL, System, check_metrics
from llm_mer.experiments.comparison.table import Comparison, format_difference, select_predictions
from llm_mer.experiments.options import CompareConfig, CrosslingualConfig
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import Task
from llm_mer.storage.atomic_files import write_text_atomically
from llm_mer.storage.locks import lock_output

MATRIX = "crosslingual.md"
BOTH = " and ".join(LANGUAGES)


@dataclass
class TransferScore:
    """One cell: trained on ``trained``, tested on ``tested``.

    ``gap`` is the score minus that of training on the tested language alone, on the same utterances; None where that is the
    cell itself.
    """

    adapter: str
    backbone: str
    task: str
    metric: str
    trained: str
    tested: str
    train_questions: int
    n: int
    baseline: float
    score: float
    interval: tuple[float, float]
    gap: float | None = None
    gap_interval: tuple[float, float] | None = None
    p_value: PValue | None = None
    unit: str = "utterance"


def transfer_scores(config: CompareConfig, comparison: Comparison, systems: Sequence[System]) -> list[TransferScore]:
    """Every cell from the predictions of the finished runs."""
    folder = Path(config.output)
    loaded = {s.name: [load_predictions(folder / s.folder(seed) / PREDICTIONS) for seed in config.seeds] for s in systems}
    runs = {run.system: run for run in comparison.runs}
    found: list[TransferScore] = []
    for adapter, backbone in dict.fromkeys((s.adapter, s.backbone) for s in systems):
        own = {_trained_on(s): s.name for s in systems if (s.adapter, s.backbone) == (adapter, backbone)}
        for (name, entry), tested in product(runs[own[BOTH]].tasks.items(), LANGUAGES):
            task = Task.from_checkpoint(name, entry)
            chosen = select_predictions(loaded, AS_IS, name, tested, EVERYTHING)
            for metric in [m for m in config.metrics if m in statistics_of(task)] or [headline_metric(task)]:
                for trained in (*LANGUAGES, BOTH):
                    ids = sorted(chosen[own[trained]][0])
                    truth = [chosen[own[trained]][0][i].truth for i in ids]
                    clusters = Clusters.of([chosen[own[trained]][0][i] for i in ids])
                    answers = {
                        language: [[seed[i].value for i in ids] for seed in chosen[own[language]]]
                        for language in (trained, tested)
                    }
                    score, interval, _ = paired_difference_over_seeds(
                        task, metric, truth, answers[trained], None, config.resamples, 0, clusters
                    )
                    cell = TransferScore(
                        adapter,
                        backbone,
                        name,
                        metric,
                        trained,
                        tested,
                        runs[own[trained]].train_questions,
                        len(ids),
                        float(majority_baseline(task, truth)[metric]),
                        score,
                        interval,
                    )
                    if trained != tested:
                        cell.gap, cell.gap_interval, cell.p_value = paired_difference_over_seeds(
                            task, metric, truth, answers[trained], answers[tested], config.resamples, 0, clusters
                        )
                    cell.unit = clusters.unit
                    found.append(cell)
    for where in dict.fromkeys(_table_of(cell) for cell in found):
        gaps = [cell for cell in found if _table_of(cell) == where and cell.p_value is not None]
        for cell, p_value in zip(gaps, adjusted_p([c.p_value for c in gaps if c.p_value is not None]), strict=True):
            cell.p_value = p_value
    return found


def _table_of(cell: TransferScore) -> tuple[str, ...]:
    """The adapter, backbone, task and metric of the matrix a cell stands in."""
    return (cell.adapter, cell.backbone or "", cell.task, cell.metric)


def _trained_on(system: System) -> str:
    return BOTH if system.ablation == FULL else str(system.options["languages"])


def markdown(cells: Sequence[TransferScore], seeds: int) -> str:
    """A matrix for each adapter, backbone, task and metric."""
    lines: list[str] = []
    for where in dict.fromkeys((c.adapter, c.backbone, c.task, c.metric) for c in cells):
        adapter, backbone, task, metric = where
        own = {(c.trained, c.tested): c for c in cells if (c.adapter, c.backbone, c.task, c.metric) == where}
        lines.append(f"### {adapter}{f' ({backbone})' if backbone else ''}: {task}, {metric}\n")
        headers = [f"tested on {t} (n={own[t, t].n})" for t in LANGUAGES]
        lines.append("| trained on (questions of all tasks) | " + " | ".join(headers) + " |")
        lines.append("|---|" + "---|" * len(LANGUAGES))
        baselines = [f"{own[t, t].baseline:.3f}" for t in LANGUAGES]
        lines.append("| *majority or mean* | " + " | ".join(baselines) + " |")
        for trained in (*LANGUAGES, BOTH):
            row = [own[trained, tested] for tested in LANGUAGES]
            lines.append(
                f"| {trained} ({row[0].train_questions}) | " + " | ".join(_format_score(cell) for cell in row) + " |"
            )
        lines.append("")
    lines.append(
        f"Mean over {seeds} seed(s) [95 % bootstrap interval over {units_of(cells)}, with the spread of the seeds where "
        "there are several]; gap: minus training on the tested language alone, on the same utterances, p of the paired "
        "bootstrap, adjusted for the number of gaps of a matrix (Benjamini and Hochberg), ≤ where no resample lies on the "
        "other side of zero, * where it is below 0.05. Answers are scored, so none is unparseable."
    )
    return "\n".join(lines)


def _format_score(cell: TransferScore) -> str:
    text = format_estimate(cell.score, cell.interval)
    if cell.gap is None or cell.gap_interval is None or cell.p_value is None:
        return text
    return f"{text}, gap {format_difference(cell.gap, cell.gap_interval, cell.p_value)}"


def run(config: CrosslingualConfig) -> str:
    """Train what is not trained yet, then write and return the matrices.

    Raises:
        UserError: as ``llm-mer compare``; data of one language only.
    """
    compare_config = CompareConfig(
        config=config.config,
        output=config.output,
        adapters=config.adapters,
        ablations=[f"*:languages={language}" for language in LANGUAGES],
        backbones=config.backbones,
        seeds=config.seeds,
        overrides=config.overrides,
        split=config.split,
        metrics=config.metrics,
        resamples=config.resamples,
    )
    check_metrics(compare_config)
    with lock_output(config.output):
        text = markdown(transfer_scores(compare_config, *compare(compare_config)), len(config.seeds))
        write_text_atomically(Path(config.output) / MATRIX, text + "\n")
    return text
