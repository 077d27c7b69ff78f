"""The evaluations of one training with many seeds, put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_mer.checkpoints.description import DESCRIPTION_FILE
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import evaluate_checkpoint, output_folders
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.evaluation.rows import Evaluation
from llm_mer.evaluation.spread import SEEDS_FILE, Spread
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.evaluation.untuned import check_untuned
from llm_mer.storage.atomic_files import write_json_atomically

TABLE_METRICS: tuple[str, ...] = ("accuracy", "weighted_f1", "ua", "mae", "rmse", "corr", "ccc")
"""Metrics of the printed table; the file has all."""


@dataclass
class SeedRow:
    """A row of the evaluations, each metric over the seeds; the baseline is of the truths, the same for every seed."""

    condition: str
    task: str
    language: str
    subset: str
    n: int
    baseline: dict[str, float]
    metrics: dict[str, Spread]


@dataclass
class SeedEvaluation:
    """The content of ``seeds.json``: ``values`` of a metric stand in the order of ``seeds``."""

    seeds: list[int]
    data: str
    split: str
    rows: list[SeedRow]

    def save(self, folder: Path) -> Path:
        """Write ``seeds.json``; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SEEDS_FILE
        write_json_atomically(path, asdict(self))
        return path


def over_seeds(evaluations: Sequence[Evaluation]) -> list[SeedRow]:
    """Each row over the evaluations.

    Raises:
        UserError: evaluations of other data or in another precision, or with other rows or counts.
    """
    first = evaluations[0]

    def places(evaluation: Evaluation) -> list[tuple[str, str, str, str, int]]:
        return [(r.condition, r.task, r.language, r.subset, r.n) for r in evaluation.rows]

    for other in evaluations[1:]:
        if (other.data, other.split) != (first.data, first.split):
            raise UserError(
                f"{other.name} was evaluated on {other.data}, split {other.split}; {first.name} on {first.data}, split "
                f"{first.split}: evaluate all on the same"
            )
        one, two = (evaluation.checkpoint.get("precision") for evaluation in (other, first))
        if one != two:
            raise UserError(f"{other.name} was evaluated in {one}, {first.name} in {two}: evaluate all with one --dtype")
        if places(other) != places(first):
            raise UserError(f"{other.name} and {first.name} were evaluated under other conditions: evaluate all alike")
    rows = []
    for index, place in enumerate(places(first)):
        own = [evaluation.rows[index].metrics for evaluation in evaluations]
        baseline = first.rows[index].baseline
        rows.append(SeedRow(*place, baseline, {name: Spread.of([m.get(name) for m in own]) for name in own[0]}))
    return rows


def seed_folders(folder: Path) -> dict[int, Path]:
    """The checkpoints ``seed-N`` of a folder, by N."""
    found = {}
    for path in folder.glob("seed-*"):
        number = path.name.removeprefix("seed-")
        if number.isdecimal() and (path / DESCRIPTION_FILE).is_file():
            found[int(number)] = path
    return dict(sorted(found.items()))


def holds_seeds(config: EvaluateConfig) -> bool:
    """Whether seeds were asked for, or the folder is no checkpoint itself and holds some of seeds."""
    folder = Path(config.checkpoint)
    return bool(config.seeds) or (not (folder / DESCRIPTION_FILE).is_file() and bool(seed_folders(folder)))


def evaluate_seeds(config: EvaluateConfig) -> str | None:
    """``llm-mer evaluate`` over the seeds of a folder: each is evaluated by itself, then their mean ± std for each store.

    The first process returns the tables, others None.

    Raises:
        UserError: a seed that is not there, or what the evaluation of one raises.
    """
    folder = Path(config.checkpoint)
    found = seed_folders(folder)
    missing = [seed for seed in config.seeds if seed not in found]
    if missing:
        held = ", ".join(map(str, found)) or "none"
        raise UserError(f"--seeds {missing[0]}: {folder} holds no checkpoint seed-{missing[0]}; it holds seeds {held}")
    chosen = {seed: found[seed] for seed in config.seeds or found}
    processes = ProcessGroup.join()
    by_store: dict[str, list[Evaluation]] = {store: [] for store in config.data}
    for seed, place in chosen.items():
        output = Path(config.output) / place.name if config.output else place / "evaluation"
        own = dataclasses.replace(config, checkpoint=str(place), output=str(output), seeds=[])
        evaluate_checkpoint(own)
        for store, where in output_folders(own).items():
            by_store[store].append(Evaluation.load(where))
        if processes.is_first:
            print(f"seed {seed} is evaluated, written to {output}", flush=True)
    if not processes.is_first:
        return None
    texts = []
    for store, evaluations in by_store.items():
        summary = SeedEvaluation(list(chosen), evaluations[0].data, evaluations[0].split, over_seeds(evaluations))
        target = Path(config.output) if config.output else folder / "evaluation"
        path = summary.save(target / Path(store).resolve().name if len(by_store) > 1 else target)
        texts.append("\n".join([table(summary), f"written to {path}"]))
    return "\n\n".join(texts)


def table(summary: SeedEvaluation) -> str:
    """Languages and subsets as text: mean ± std over the seeds, then each seed's value and the baseline."""
    lines = [f"{len(summary.seeds)} seeds: {', '.join(map(str, summary.seeds))}; mean ± std, then each"]
    for row in summary.rows:
        if EVERYTHING not in (row.subset, row.language):
            continue
        shown = []
        for name in (name for name in TABLE_METRICS if name in row.metrics):
            spread = row.metrics[name]
            each = " ".join("–" if value is None else f"{value:.3f}" for value in spread.values)
            trivial = f"; baseline {row.baseline[name]:.3f}" if name in row.baseline else ""
            shown.append(f"{name} {spread} ({each}{trivial})")
        lines.append(
            f"{row.condition:<28} {row.task:<10} {row.language:<3} {row.subset:<16} n={row.n:<5} {'  '.join(shown)}"
        )
    return "\n".join(lines)


def run(config: EvaluateConfig) -> str | None:
    """``llm-mer evaluate``: one checkpoint, each seed of a folder and their mean ± std, or an untuned language model."""
    if not config.checkpoint:
        check_untuned(config)
        return evaluate_checkpoint(config)
    return evaluate_seeds(config) if holds_seeds(config) else evaluate_checkpoint(config)
