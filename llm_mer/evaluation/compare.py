"""``llm-mer compare``: adapters × ablations × seeds on one backbone and identical data order; one table."""

from __future__ import annotations

import gc
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.adapters import ADAPTERS, adapter_class
from llm_mer.adapters.base import MODALITIES, MODALITY_ABLATIONS
from llm_mer.errors import UserError
from llm_mer.evaluation.bootstrap import as_arrays, paired_difference_over_seeds, statistics_of
from llm_mer.evaluation.evaluate import (
    AS_IS,
    DIALOGUE,
    EVERYTHING,
    PREDICTIONS,
    decode_dialogues,
    load_predictions,
    parse_conditions,
    save_predictions,
    under,
)
from llm_mer.evaluation.metrics import majority_baseline
from llm_mer.prediction import Prediction
from llm_mer.tasks import Task

logger = logging.getLogger(__name__)

RUN, TABLE, COMPARISON = "run.json", "comparison.md", "comparison.json"
FULL = "full"
METRICS: tuple[str, ...] = ("accuracy", "weighted_f1", "ua", "mae", "corr")
HEADLINE: dict[str, str] = {"classification": "accuracy", "regression": "mae"}


@dataclass
class CompareConfig:
    """Options of ``llm-mer compare``."""

    config: str = field(default="", metadata={"help": "training YAML every run starts from", "required": True})
    output: str = field(default="runs/compare", metadata={"help": "folder; finished runs in it are kept, the rest is done"})
    adapters: list[str] = field(default_factory=lambda: ["egmf"], metadata={"help": "adapters, or all"})
    ablations: list[str] = field(
        default_factory=list,
        metadata={
            "help": "paper (every row of the adapters' own ablation tables), or ADAPTER:option=value[,option=value] "
            "(ADAPTER may be *)"
        },
    )
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "each run is repeated with each seed"})
    backbones: list[str] = field(
        default_factory=list, metadata={"help": "backbones (none is the adapter's own head); default: the YAML's"}
    )
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "option=value for every run, on top of the YAML, e.g. num_train_epochs=8"}
    )
    split: str = field(default="test", metadata={"help": "split that is scored"})
    conditions: list[str] = field(
        default_factory=list, metadata={"help": "also score under shuffle:…, without:… or subsets, as in evaluate"}
    )
    dialogue_decoder: bool = field(default=False, metadata={"help": "also score after the Dialogical Emotion Decoder"})
    subsets: list[str] = field(
        default_factory=list, metadata={"help": "also score these tagged subsets, e.g. neutral_words"}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "metrics of the table: accuracy, weighted_f1, ua, mae, corr; default: accuracy and mae"},
    )
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples"})
    keep_models: bool = field(default=False, metadata={"help": "keep the checkpoints, not only predictions"})


@dataclass
class System:
    """One row of the table before it is run."""

    adapter: str
    backbone: str
    ablation: str
    options: dict[str, str]

    @property
    def name(self) -> str:
        """``egmf w/o E1 (tiny:llama)``."""
        return " ".join(
            [self.adapter, *([self.ablation] if self.ablation != FULL else []), f"({self.backbone or 'as in the YAML'})"]
        )

    def folder(self, seed: int) -> str:
        """A file name that says what ran."""
        plain = "".join(c if c.isalnum() else "-" for c in f"{self.adapter}-{self.backbone}-{self.ablation}")
        return f"{plain}-{seed}"


@dataclass
class RunResult:
    """What one training left beside its predictions."""

    system: str
    seed: int
    arguments: list[str]
    parameters: dict[str, int]
    train_seconds: float
    steps: int
    milliseconds_per_answer: float
    shift_probability: dict[str, float]
    tasks: dict[str, dict[str, Any]]


@dataclass
class Cell:
    """One metric of a system: mean and standard deviation over seeds, and against the reference on the same samples."""

    mean: float
    std: float
    interval: tuple[float, float]
    difference: float | None = None
    p_value: float | None = None


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
    cell: Cell


@dataclass
class Comparison:
    """Everything ``comparison.json`` holds."""

    reference: str
    runs: list[RunResult]
    rows: list[TableRow]


def check_metrics(config: CompareConfig) -> None:
    """Raise :class:`UserError` for a metric the table cannot hold."""
    unknown = sorted(set(config.metrics) - set(METRICS))
    if unknown:
        raise UserError(f"metrics: {', '.join(unknown)} is none; choose from {', '.join(METRICS)}")


def plan(config: CompareConfig) -> list[System]:
    """Adapters × (full and ablations) × backbones.

    Raises:
        UserError: an unknown adapter, or an ablation that is written wrongly or knows no such option.
    """
    names = list(ADAPTERS) if config.adapters == ["all"] else config.adapters
    for name in names:
        if name not in ADAPTERS:
            raise UserError(f"adapters: {name!r} is none; choose from {', '.join(ADAPTERS)}, or all")
    systems = []
    for backbone in config.backbones or [""]:
        for name in names:
            found: dict[str, dict[str, str]] = {FULL: {}}
            for text in config.ablations:
                found |= _ablations(text, name)
            systems += [System(name, backbone, label, options) for label, options in found.items()]
    return systems


def _ablations(text: str, adapter: str) -> dict[str, dict[str, str]]:
    cls = adapter_class(adapter)
    if text == "paper":
        return {
            label: {k: str(v).lower() for k, v in options.items()}
            for label, options in {**cls.ablations, **MODALITY_ABLATIONS}.items()
        }
    owner, separator, rest = text.partition(":")
    pairs = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
    if not separator or not pairs:
        raise UserError(f"ablation {text!r}: write paper, or ADAPTER:option=value")
    if owner not in ("*", adapter):
        if owner not in ADAPTERS:
            raise UserError(f"ablation {text!r}: {owner!r} is no adapter")
        return {}
    unknown = sorted(set(pairs) - set(cls.config_class.__dataclass_fields__))
    if unknown:
        raise UserError(f"ablation {text!r}: adapter {adapter!r} has no option {', '.join(unknown)}")
    return {rest: pairs}


def training_arguments(config: CompareConfig, system: System, seed: int, folder: Path) -> list[str]:
    """The command line of one training. Data order follows the seed alone, so it is the same for every system."""
    arguments = ["--config", config.config, "--adapter", system.adapter, "--output_dir", str(folder), "--seed", str(seed)]
    arguments += ["--data_seed", str(seed)]
    if system.backbone:
        arguments += ["--backbone", system.backbone]
    for text in config.overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"overrides: {text!r}; write option=value")
        arguments += [f"--{name}", value]
    for name, value in system.options.items():
        arguments += [f"--{name}", value]
    return arguments


def train_and_predict(config: CompareConfig, system: System, seed: int, folder: Path) -> RunResult:
    """One training and its predictions on the scored split under every condition; nothing is written until all is done."""
    from llm_mer.data.dataset import MerDataset
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.inference import Predictor
    from llm_mer.modeling import describe_parameters, fusion_adapter_of
    from llm_mer.training import build_trainer, parse_arguments

    arguments = training_arguments(config, system, seed, folder)
    data, model, training, options = parse_arguments(arguments)
    splits, _, _ = read_utterances(data.data)
    scored = find_split(splits, config.split, data.data)  # a wrong split is told before the training
    scratch = tempfile.TemporaryDirectory(prefix="llm-mer-compare-")
    if not config.keep_models:
        training.output_dir, model.save_backbone = scratch.name, "never"
    trainer = build_trainer(data, model, training, options)
    began = time.perf_counter()
    trainer.train()
    assert trainer.model is not None
    seconds = time.perf_counter() - began
    tasks = trainer.processor.tasks
    dataset = MerDataset(
        scored,
        tasks,
        languages=data.languages,
        context_window=data.context_window,
        bidirectional=data.bidirectional_context,
    )
    adapter = fusion_adapter_of(trainer.model)
    predictor = Predictor(
        trainer.model, trainer.processor, batch_size=training.per_device_eval_batch_size, use_context=adapter.uses_context
    )
    available = [m for m in MODALITIES if m in adapter.config.modalities]
    began = time.perf_counter()
    by_condition = {AS_IS: predictor.predict(dataset)}
    per_answer = 1000 * (time.perf_counter() - began) / len(dataset)
    for name, (kind, modalities) in parse_conditions(config.conditions, available).items():
        by_condition[name] = predictor.predict(under(dataset, kind, modalities, seed))
    assert trainer.description is not None
    shifts = trainer.description.shift_probability
    if config.dialogue_decoder:
        for task in tasks:
            if task.name in shifts:
                own = [p for p in by_condition[AS_IS] if p.task == task.name]
                by_condition.setdefault(DIALOGUE, []).extend(decode_dialogues(own, task, shifts[task.name]))
    folder.mkdir(parents=True, exist_ok=True)
    if config.keep_models:
        trainer.save_model(str(folder))
    for name, predictions in by_condition.items():
        for prediction in predictions:
            prediction.probabilities = {}
            if name != AS_IS:
                prediction.diagnostics = {}
    save_predictions(folder / PREDICTIONS, by_condition)
    result = RunResult(
        system.name,
        seed,
        arguments,
        describe_parameters(trainer.model),
        round(seconds, 2),
        trainer.state.global_step,
        round(per_answer, 3),
        shifts,
        {task.name: task.to_dict() for task in tasks},
    )
    (folder / RUN).write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    del trainer, predictor
    scratch.cleanup()
    gc.collect()
    return result


# --- the table --------------------------------------------------------------------------------------------------------

Chosen = dict[str, list[dict[str, Prediction]]]
"""System name to one ``{utterance id: prediction}`` a seed."""


def select(
    loaded: dict[str, list[dict[str, list[Prediction]]]], condition: str, task: str, language: str, subset: str
) -> Chosen:
    """The predictions of a condition, task, language and subset, by system and seed."""
    found: Chosen = {}
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


def make_row(
    chosen: Chosen, system: str, reference: str, task: Task, metric: str, resamples: int
) -> tuple[Cell, int, list[Any]]:
    """One cell, with n and the truths."""
    ids = sorted(chosen[system][0])
    truth = [chosen[system][0][i].truth for i in ids]
    values = [[seed[i].value for i in ids] for seed in chosen[system]]
    statistic = statistics_of(task)[metric]
    scores = []
    for answers in values:
        true, guess = as_arrays(task, truth, answers)
        scores.append(float(statistic(true[None], guess[None])[0]))
    _, interval, _ = paired_difference_over_seeds(task, metric, truth, values, None, resamples, 0)
    cell = Cell(float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0, interval)
    other = chosen.get(reference)
    if system != reference and other is not None and sorted(other[0]) == ids and len(other) == len(values):
        against = [[seed[i].value for i in ids] for seed in other]
        cell.difference, _, cell.p_value = paired_difference_over_seeds(task, metric, truth, values, against, resamples, 0)
    return cell, len(ids), truth


def tabulate(config: CompareConfig, systems: Sequence[System], runs: dict[str, list[RunResult]]) -> Comparison:
    """Every row from the predictions on disk. The first system is the reference of differences and p-values."""
    folder = Path(config.output)
    loaded = {s.name: [load_predictions(folder / s.folder(seed) / PREDICTIONS) for seed in config.seeds] for s in systems}
    reference = systems[0].name
    first = runs[reference][0]
    conditions = list(dict.fromkeys(name for seeds in loaded.values() for by in seeds for name in by))
    rows = []
    for task_name, entry in first.tasks.items():
        task = Task.from_dict(task_name, entry)
        metrics = [m for m in config.metrics if m in statistics_of(task)] or [HEADLINE[task.kind]]
        languages = sorted({p.language for p in loaded[reference][0][AS_IS]})
        if len(languages) > 1:
            languages.append(EVERYTHING)
        cells = product(conditions, languages, [EVERYTHING, *config.subsets], metrics)
        for condition, language, subset, metric in cells:
            chosen = select(loaded, condition, task_name, language, subset)
            for system in chosen:
                cell, n, truth = make_row(chosen, system, reference, task, metric, config.resamples)
                baseline = float(majority_baseline(task, truth)[metric])
                rows.append(
                    TableRow(system, condition, task_name, language, subset, metric, n, len(config.seeds), baseline, cell)
                )
    return Comparison(reference, [r for results in runs.values() for r in results], rows)


def markdown(comparison: Comparison) -> str:
    """The table: systems down, ``task language subset`` across; then cost. Differences with p < 0.05 are marked."""
    columns = list(dict.fromkeys((r.condition, r.task, r.language, r.subset, r.metric) for r in comparison.rows))
    systems = list(dict.fromkeys(r.system for r in comparison.rows))
    found = {(r.system, r.condition, r.task, r.language, r.subset, r.metric): r for r in comparison.rows}
    lines = []
    for condition in dict.fromkeys(c[0] for c in columns):
        here = [c for c in columns if c[0] == condition]
        lines.append(f"### {condition[0].upper() + condition[1:]}\n")
        heads = [
            f"{task} {language}{'' if subset == EVERYTHING else ' ' + subset}, {metric}"
            for _, task, language, subset, metric in here
        ]
        lines.append("| system | " + " | ".join(heads) + " |")
        lines.append("|---|" + "---|" * len(here))
        trivial = []
        for column in here:
            row = next(found[(s, *column)] for s in systems if (s, *column) in found)
            trivial.append(f"{row.baseline:.3f} (n={row.n})")
        lines.append("| *majority or mean* | " + " | ".join(trivial) + " |")
        for system in systems:
            cells = []
            for column in here:
                entry = found.get((system, *column))
                cells.append("" if entry is None else _show(entry.cell, entry.seeds))
            if any(cells):
                lines.append(f"| {system} | " + " | ".join(cells) + " |")
        lines.append("")
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
        f"utterances]; p is of the paired bootstrap against {comparison.reference}, * where it is below 0.05. Answers are "
        "scored, so none is unparseable."
    )
    return "\n".join(lines)


def _show(cell: Cell, seeds: int) -> str:
    text = (
        f"{cell.mean:.3f}"
        + (f" ± {cell.std:.3f}" if seeds > 1 else "")
        + f" [{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]"
    )
    if cell.p_value is not None:
        text += f", p {cell.p_value:.3f}" + ("*" if cell.p_value < 0.05 else "")
    return text


def run(config: CompareConfig) -> str:
    """Do what is not done yet, then write and return the table."""
    if not Path(config.config).is_file():
        raise UserError(f"--config {config.config}: no such file")
    check_metrics(config)
    systems, folder = plan(config), Path(config.output)
    runs: dict[str, list[RunResult]] = {}
    total = len(systems) * len(config.seeds)
    for system in systems:
        for seed in config.seeds:
            number = sum(map(len, runs.values())) + 1
            place = folder / system.folder(seed)
            wanted = training_arguments(config, system, seed, place)
            done = place / RUN
            if done.is_file():
                result = RunResult(**json.loads(done.read_text(encoding="utf-8")))
                if result.arguments != wanted:
                    raise UserError(f"{place} holds a run with other options; name another --output or delete it")
                logger.warning("[%d/%d] %s, seed %d: done before", number, total, system.name, seed)
            else:
                logger.warning("[%d/%d] %s, seed %d", number, total, system.name, seed)
                with redirect_stdout(sys.stderr):  # the trainer's log; standard output is the table's
                    result = train_and_predict(config, system, seed, place)
            runs.setdefault(system.name, []).append(result)
    comparison = tabulate(config, systems, runs)
    text = markdown(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPARISON).write_text(json.dumps(asdict(comparison), ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    return text
