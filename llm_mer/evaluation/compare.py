"""``llm-mer compare``: adapters × ablations × seeds on one backbone and identical data order; one table."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
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
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mer.adapters import ADAPTERS, adapter_class
from llm_mer.adapters.base import MODALITIES, MODALITY_ABLATIONS, AdapterConfig
from llm_mer.errors import UserError
from llm_mer.evaluation.bootstrap import as_arrays, paired_difference_over_seeds, statistics_of
from llm_mer.evaluation.evaluate import (
    AS_IS,
    DIALOGUE,
    EVERYTHING,
    NOISY_FEATURES,
    PREDICTIONS,
    Condition,
    decode_dialogues,
    load_predictions,
    parse_conditions,
    prepare_damage,
    reader_of,
    save_predictions,
    under,
)
from llm_mer.evaluation.metrics import majority_baseline
from llm_mer.prediction import Prediction
from llm_mer.processes import Processes
from llm_mer.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from llm_mer.configuration import ModelArguments
    from llm_mer.data.reading import RunData

logger = logging.getLogger(__name__)

RUN, TABLE, COMPARISON = "run.json", "comparison.md", "comparison.json"
FULL = "full"
METRICS: tuple[str, ...] = ("accuracy", "weighted_f1", "ua", "ova_accuracy", "mae", "corr")
HEADLINE: dict[str, str] = {"classification": "accuracy", "regression": "mae"}
SINGLE_MODALITIES: dict[str, dict[str, bool]] = {
    f"{only} only": {f"use_{m}": False for m in MODALITIES if m != only} for only in MODALITIES
}
NO_LORA: dict[str, dict[str, Any]] = {"no LoRA": {"lora_r": 0}}
LORA_SHARINGS: dict[str, dict[str, Any]] = {
    "a LoRA per language": {"lora_sharing": "per_language"},
    "a shared LoRA and one per language": {"lora_sharing": "shared_and_per_language"},
    **NO_LORA,
}
FIXED: tuple[str, ...] = ("data", "tasks", "train_split", "eval_split", "limit_train", "limit_eval")
"""Options of the data that are the same for every system, or their scores would not be of the same questions."""


@dataclass
class CompareConfig:
    """Options of ``llm-mer compare``."""

    config: str = field(default="", metadata={"help": "training YAML every run starts from", "required": True})
    output: str = field(default="runs/compare", metadata={"help": "folder; finished runs in it are kept, the rest is done"})
    adapters: list[str] = field(default_factory=lambda: ["egmf"], metadata={"help": "adapters, or all"})
    ablations: list[str] = field(
        default_factory=list,
        metadata={
            "help": "paper (every row of the adapters' own ablation tables, each modality left out and alone, no LoRA), "
            "lora (one LoRA for all languages against one for each, both, and none), or "
            "ADAPTER:option=value[,option=value] (ADAPTER may be *; options of the adapter, of the model, e.g. lora_r=0, "
            "and of reading, e.g. prompts=notext or languages=en, which trains on English and scores on all)"
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
        metadata={"help": f"metrics of the table: {', '.join(METRICS)}; default: accuracy and mae"},
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
class RunSettings:
    """What the predictions of a run come from. A finished run is used again only where all of it is the same."""

    arguments: list[str]
    split: str
    conditions: list[str]
    dialogue_decoder: bool
    config_sha256: str
    data_fingerprint: str

    def differences(self, now: RunSettings) -> list[str]:
        """``split was 'valid', now 'test'`` for everything in which a run asked for now differs."""
        had, wanted = _by_option(self.arguments), _by_option(now.arguments)
        found = [(name, had.get(name), wanted.get(name)) for name in {**had, **wanted} if had.get(name) != wanted.get(name)]
        for entry in dataclasses.fields(RunSettings):
            before, after = getattr(self, entry.name), getattr(now, entry.name)
            if before != after and entry.name != "arguments":
                cut = 12 if entry.name in ("config_sha256", "data_fingerprint") else None
                found.append((entry.name, before[:cut] if cut else before, after[:cut] if cut else after))
        return [f"{name} was {before!r}, now {after!r}" for name, before, after in found]


def _by_option(arguments: Sequence[str]) -> dict[str, str]:
    """Options by name. Where a run lies is none of them: a folder may be moved."""
    options = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=False)}
    options.pop("output_dir", None)
    return options


@dataclass
class RunResult(RunSettings):
    """What one training left beside its predictions."""

    system: str
    seed: int
    modalities: list[str]
    parameters: dict[str, int]
    train_questions: int
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
    reference: str | None
    """The system that the cell's difference and p-value are against; None where it was compared with none."""
    cell: Cell


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
    p_value: float


@dataclass
class Comparison:
    """Everything ``comparison.json`` holds. ``reference`` is the first system, which other adapters are compared with."""

    reference: str
    runs: list[RunResult]
    rows: list[TableRow]
    decoder_gains: list[DecoderGain] = field(default_factory=list)


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
                found |= _ablations(text, name, backbone)
            systems += [System(name, backbone, label, options) for label, options in found.items()]
    return systems


def _ablations(text: str, adapter: str, backbone: str) -> dict[str, dict[str, str]]:
    from llm_mer.configuration import DataArguments, ModelArguments

    cls = adapter_class(adapter)
    if text in ("paper", "lora"):
        rows: dict[str, Any] = {}
        if text == "paper":
            rows |= {**cls.ablations, **MODALITY_ABLATIONS, **SINGLE_MODALITIES}
        if backbone != "none":
            rows |= NO_LORA if text == "paper" else LORA_SHARINGS
        return {label: {k: str(v).lower() for k, v in options.items()} for label, options in rows.items()}
    owner, separator, rest = text.partition(":")
    pairs = dict(part.split("=", 1) for part in rest.split(",") if "=" in part)
    if not separator or not pairs:
        raise UserError(f"ablation {text!r}: write paper, lora, or ADAPTER:option=value")
    if owner not in ("*", adapter):
        if owner not in ADAPTERS:
            raise UserError(f"ablation {text!r}: {owner!r} is no adapter")
        return {}
    if {"adapter", "backbone"} & set(pairs):
        raise UserError(f"ablation {text!r}: adapters and backbones are named with --adapters and --backbones")
    if set(FIXED) & set(pairs):
        raise UserError(f"ablation {text!r}: {', '.join(sorted(set(FIXED) & set(pairs)))} is the same for every system")
    classes = (cls.config_class, ModelArguments, DataArguments)
    known = {f.name for owner in classes for f in dataclasses.fields(owner) if not f.metadata.get("derived")}
    unknown = sorted(set(pairs) - known)
    if unknown:
        raise UserError(
            f"ablation {text!r}: adapter {adapter!r} has no option {', '.join(unknown)}, nor have the model and the data"
        )
    return {rest: pairs}


def adapter_config(data: RunData, model: ModelArguments, options: dict[str, Any]) -> AdapterConfig:
    """The adapter's configuration as this data make it: modalities that are not there are not used."""
    from llm_mer.building import stand_in_config

    found = stand_in_config(data, model, options)
    used: dict[str, Any] = {f"use_{m}": m in found.modalities for m in MODALITIES}
    return dataclasses.replace(found, **used)


def behaviour(adapter: str, config: AdapterConfig) -> dict[str, Tensor]:
    """All that an adapter shows in and after a training step on made-up inputs, everything drawn from one seed.

    Two configurations with the same behaviour are one system: options that ask for what this data cannot give, as
    attention between modalities where there is one.
    """
    import torch

    from llm_mer.adapters import build_adapter
    from llm_mer.adapters.base import ConversationContext, FusionInputs, FusionTargets, ModalitySequence

    rows, steps, turns = 4, 5, 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_adapter(adapter, config)
        torch.manual_seed(1)
        everywhere = torch.ones(rows, turns, dtype=torch.bool)
        context = ConversationContext(everywhere, torch.tensor([[0, 1, 0]]).repeat(rows, 1), torch.full((rows,), turns - 1))
        inputs = FusionInputs(context=context if built.uses_context else None)
        for modality in config.modalities:
            size = config.feature_sizes[modality]
            features = torch.randn(rows, steps, size)
            setattr(inputs, modality, ModalitySequence(features, torch.ones(rows, steps, dtype=torch.bool)))
            setattr(context, modality, torch.randn(rows, turns, size))
            setattr(context, f"{modality}_mask", everywhere)
        classes = torch.arange(rows) % config.num_classes if config.num_classes else None
        scores = torch.linspace(*config.score_range, rows) if config.score_range is not None else None
        inputs.targets = FusionTargets(classes, scores)
        if config.num_classes and config.backbone_size:
            built.initialise_from_backbone(torch.randn(config.num_classes, config.backbone_size))
        shown = {f"start of {name}": value.clone() for name, value in built.state_dict().items()}
        for when in ("training", "evaluation"):
            torch.manual_seed(2)
            with torch.no_grad():
                output = built.train(when == "training")(inputs)
                values = {"tokens": output.pseudo_tokens, "logits": output.logits, "scores": output.scores}
                values |= output.aux_losses
                shown |= {f"{name} in {when}": value for name, value in values.items() if value is not None}
                for parameter in built.parameters():
                    parameter.add_(0.1)  # as a step of the optimiser would
            built.on_epoch_end()
        shown |= {f"end of {name}": value.clone() for name, value in built.state_dict().items()}
    return shown


def without_idle_rows(config: CompareConfig, systems: Sequence[System], data: RunData) -> list[System]:
    """The systems without ablations that change nothing on this data or cannot be built on it; each is warned about.

    Raises:
        UserError: an adapter that cannot be built as the YAML file says, or a condition its modalities do not allow.
    """
    import torch

    from llm_mer.adapters import build_adapter
    from llm_mer.data.reading import check_prompts
    from llm_mer.prompts import load_prompts
    from llm_mer.training import check_loss_weights, parse_arguments

    kept: list[System] = []
    seen: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    shown: dict[str, dict[str, Tensor]] = {}
    for system in systems:
        reading, model, _, options = parse_arguments(training_arguments(config, system, config.seeds[0], Path("unused")))
        spoken = {data.train.language(row) for row in data.train.rows}
        if reading.languages is not None and not spoken & set(reading.languages):
            raise UserError(f"{system.name}: the data have no {', '.join(reading.languages)}, only {', '.join(spoken)}")
        own = adapter_config(data, model, options)
        fate = ""
        try:
            weights = check_loss_weights(model)
            with torch.random.fork_rng(devices=[]):
                build_adapter(system.adapter, own)
        except (ValueError, UserError) as error:
            if system.ablation == FULL:
                raise UserError(f"adapter {system.adapter!r}: {error}") from error
            fate = f"it cannot be built: {error}"
        if not fate:
            rest = {**dataclasses.asdict(model), **dataclasses.asdict(reading), "loss_weights": weights}
            if model.backbone == "none":
                in_words = {"prompts", "chat", "max_prompt_tokens", "max_text_tokens"}
                kept_options = {"loss_weights", "adapter_learning_rate", "init_checkpoint"}
                kept_options |= {f.name for f in dataclasses.fields(reading)} - in_words
                rest = {name: rest[name] for name in sorted(kept_options)}
            else:
                check_prompts(data.train, load_prompts(reading.prompts))
            others = seen.setdefault((system.adapter, system.backbone), [])
            same = next((name for name, setup in others if setup == (own, rest)), None)
            if same is None and system.ablation in adapter_class(system.adapter).ablations:
                full, (setup, _) = others[0]
                if full not in shown:
                    shown[full] = behaviour(system.adapter, setup)
                other = behaviour(system.adapter, own)
                if other.keys() == shown[full].keys() and all(torch.equal(v, shown[full][k]) for k, v in other.items()):
                    same = full
            if same is not None:
                fate = f"on this data it is the same as {same}"
            others.append((system.name, (own, rest)))
        if fate:
            logger.warning("%s is left out: %s", system.name, fate)
            continue
        if system.ablation == FULL:
            parse_conditions(config.conditions, [m for m in MODALITIES if m in own.modalities])
        kept.append(system)
    return kept


def conditions_of(config: CompareConfig, system: System, available: list[str]) -> dict[str, Condition]:
    """The conditions a system can be scored under; an ablation without the modality a condition names does without it."""
    found: dict[str, Condition] = {}
    for text in config.conditions:
        try:
            found |= parse_conditions([text], available)
        except UserError as error:
            if system.ablation == FULL:
                raise
            logger.warning("%s: %s", system.name, error)
    return found


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


def scored_languages(config: CompareConfig, system: System) -> list[str] | None:
    """The languages of the YAML file and the overrides: a system trained on one of them is scored on all."""
    from llm_mer.training import parse_arguments

    options = {name: value for name, value in system.options.items() if name != "languages"}
    everywhere = dataclasses.replace(system, options=options)
    data, _, _, _ = parse_arguments(training_arguments(config, everywhere, config.seeds[0], Path("unused")))
    return data.languages


def train_and_predict(config: CompareConfig, system: System, seed: int, folder: Path, settings: RunSettings) -> RunResult:
    """One training and its predictions on the scored split under every condition; nothing is written until all is done."""
    from llm_mer.data.dataset import MerDataset
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.inference import Predictor
    from llm_mer.modeling import describe_parameters, fusion_adapter_of
    from llm_mer.training import parse_arguments, prepare_run, save_final

    languages = scored_languages(config, system)  # first: parsing options resets what a trainer stands on
    data, model, training, options = parse_arguments(settings.arguments)
    splits, _, _ = read_utterances(data.data)
    scored = find_split(splits, config.split, data.data)  # a wrong split is told before the training
    scratch = tempfile.TemporaryDirectory(prefix="llm-mer-compare-")
    if not config.keep_models:
        training.output_dir, model.save_backbone = scratch.name, "never"
    run = prepare_run(data, model, training, options, ["finetune.py", *settings.arguments])
    trainer = run.trainer
    assert trainer.model is not None
    assert trainer.description is not None
    tasks, shifts = trainer.processor.tasks, trainer.description.shift_probability
    if config.dialogue_decoder and any(t.kind == "classification" and t.name not in shifts for t in tasks):
        raise UserError(f"the training data of {data.data} had no dialogues: no p0 for the dialogue decoder")
    available = [m for m in MODALITIES if m in fusion_adapter_of(trainer.model).config.modalities]
    dataset = MerDataset(
        scored,
        tasks,
        languages=languages,
        context_window=data.context_window,
        bidirectional=data.bidirectional_context,
    )
    reader = reader_of(trainer.description, available, Path(config.output) / NOISY_FEATURES)
    conditions = conditions_of(config, system, available)
    changed = {name: under(dataset, condition, seed, reader) for name, condition in conditions.items()}
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    adapter = fusion_adapter_of(trainer.model)
    predictor = Predictor(
        trainer.model, trainer.processor, batch_size=training.per_device_eval_batch_size, use_context=adapter.uses_context
    )
    began = time.perf_counter()
    by_condition = {AS_IS: predictor.predict(dataset)}
    per_answer = 1000 * (time.perf_counter() - began) / len(dataset)
    for name, other in changed.items():
        prepare_damage(other, adapter.uses_context, Processes())
        by_condition[name] = predictor.predict(other)
    if config.dialogue_decoder:
        for task in tasks:
            if task.name in shifts:
                own = [p for p in by_condition[AS_IS] if p.task == task.name]
                by_condition.setdefault(DIALOGUE, []).extend(decode_dialogues(own, task, shifts[task.name]))
    folder.mkdir(parents=True, exist_ok=True)
    if config.keep_models:
        save_final(trainer, folder)
    for name, predictions in by_condition.items():
        for prediction in predictions:
            prediction.probabilities = {}
            if name != AS_IS:
                prediction.diagnostics = {}
    save_predictions(folder / PREDICTIONS, by_condition)
    result = RunResult(
        **asdict(settings),
        system=system.name,
        seed=seed,
        modalities=available,
        parameters=describe_parameters(trainer.model),
        train_questions=int(trainer.description.data["train_questions"]),
        train_seconds=round(seconds, 2),
        steps=trainer.state.global_step,
        milliseconds_per_answer=round(per_answer, 3),
        shift_probability=shifts,
        tasks={task.name: task.to_dict() for task in tasks},
    )
    run.manifest.finish(folder, {}, trainer.state.global_step)
    (folder / RUN).write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    del run, trainer, predictor
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
    """Every row from the predictions on disk.

    The reference of differences and p-values is an ablation's own adapter and backbone in full, and the first system for
    the others.
    """
    folder = Path(config.output)
    loaded = {s.name: [load_predictions(folder / s.folder(seed) / PREDICTIONS) for seed in config.seeds] for s in systems}
    reference = systems[0].name
    full = {(s.adapter, s.backbone): s.name for s in systems if s.ablation == FULL}
    against = {s.name: reference if s.ablation == FULL else full[s.adapter, s.backbone] for s in systems}
    first = runs[reference][0]
    conditions = list(dict.fromkeys(name for seeds in loaded.values() for by in seeds for name in by))
    rows: list[TableRow] = []
    gains: list[DecoderGain] = []
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
                cell, n, truth = make_row(chosen, system, against[system], task, metric, config.resamples)
                baseline = float(majority_baseline(task, truth)[metric])
                where = (system, condition, task_name, language, subset, metric)
                other = against[system] if cell.p_value is not None else None
                rows.append(TableRow(*where, n, len(config.seeds), baseline, other, cell))
        for language, metric in product(languages, metrics):
            gains += decoder_gains(loaded, task, language, metric, config.resamples)
    return Comparison(reference, [r for results in runs.values() for r in results], rows, gains)


def decoder_gains(
    loaded: dict[str, list[dict[str, list[Prediction]]]], task: Task, language: str, metric: str, resamples: int
) -> list[DecoderGain]:
    """What the dialogue decoder adds to each system; nothing where it did not run."""
    before = select(loaded, AS_IS, task.name, language, EVERYTHING)
    after = select(loaded, DIALOGUE, task.name, language, EVERYTHING)
    found = []
    for system, decoded in after.items():
        ids = sorted(decoded[0])
        truth = [decoded[0][i].truth for i in ids]
        first, second = ([[seed[i].value for i in ids] for seed in seeds] for seeds in (decoded, before[system]))
        difference = paired_difference_over_seeds(task, metric, truth, first, second, resamples, 0)
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
    lines += gain_table(comparison.decoder_gains)
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
        f"utterances]; p is of the paired bootstrap, * where it is below 0.05: {references(comparison)}. Answers are "
        "scored, so none is unparseable."
    )
    return "\n".join(lines)


def references(comparison: Comparison) -> str:
    """``of A and B against C``, for every reference of the rows."""
    by_reference: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.reference is not None and row.system not in by_reference.setdefault(row.reference, []):
            by_reference[row.reference].append(row.system)
    return "; ".join(f"of {', '.join(names)} against {other}" for other, names in by_reference.items()) or "none here"


def gain_table(gains: Sequence[DecoderGain]) -> list[str]:
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
            cells.append("" if gain is None else signed(gain.difference, gain.interval, gain.p_value))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return [*lines, "\nDecoder minus as is, on the same utterances.\n"]


def signed(value: float, interval: tuple[float, float], p_value: float) -> str:
    """A difference with its interval and p, marked where p is below 0.05."""
    mark = "*" if p_value < 0.05 else ""
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}], p {p_value:.3f}{mark}"


def _show(cell: Cell, seeds: int) -> str:
    text = (
        f"{cell.mean:.3f}"
        + (f" ± {cell.std:.3f}" if seeds > 1 else "")
        + f" [{cell.interval[0]:.3f}, {cell.interval[1]:.3f}]"
    )
    if cell.p_value is not None:
        text += f", p {cell.p_value:.3f}" + ("*" if cell.p_value < 0.05 else "")
    return text


def read_result(path: Path) -> RunResult:
    """A finished run's ``run.json``. Raises :class:`UserError` for one that another version of the program wrote."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not whole ({error}); delete {path.parent}") from error
    names = {f.name for f in dataclasses.fields(RunResult)}
    odd = sorted(names ^ set(entry))
    if odd:
        raise UserError(
            f"{path} was written by another version of this program ({', '.join(odd)}); name another --output or delete "
            f"{path.parent}"
        )
    return RunResult(**entry)


def compare(config: CompareConfig) -> tuple[Comparison, list[System]]:
    """Do what is not done yet; the comparison, also written as ``comparison.json``, and the systems that were run.

    Raises:
        UserError: options or data that do not fit one another, or finished runs of other options.
    """
    from llm_mer.data.reading import prepare_data
    from llm_mer.training import parse_arguments

    if not Path(config.config).is_file():
        raise UserError(f"--config {config.config}: no such file")
    check_metrics(config)
    systems, folder = plan(config), Path(config.output)
    data, _, _, _ = parse_arguments(training_arguments(config, systems[0], config.seeds[0], folder))
    prepared = prepare_data(data, with_prompts=False)
    if config.dialogue_decoder and all(task.kind != "classification" for task in prepared.tasks):
        raise UserError("--dialogue_decoder: no task has classes to decode")
    systems = without_idle_rows(config, systems, prepared)
    digest = hashlib.sha256(Path(config.config).read_bytes()).hexdigest()
    shared = (config.split, list(config.conditions), config.dialogue_decoder, digest, prepared.fingerprint)
    del prepared
    done: dict[Path, RunResult] = {}
    wanted: dict[Path, RunSettings] = {}
    for system, seed in product(systems, config.seeds):
        place = folder / system.folder(seed)
        wanted[place] = RunSettings(training_arguments(config, system, seed, place), *shared)
        if (place / RUN).is_file():
            done[place] = read_result(place / RUN)
            odd = done[place].differences(wanted[place])
            if odd:
                raise UserError(
                    f"{place} holds a run with other options: {'; '.join(odd)}; name another --output or delete it"
                )
    runs: dict[str, list[RunResult]] = {}
    for number, (system, seed) in enumerate(product(systems, config.seeds), start=1):
        place = folder / system.folder(seed)
        before = " (done before)" if place in done else ""
        logger.warning("[%d/%d] %s, seed %d%s", number, len(wanted), system.name, seed, before)
        if not before:
            with redirect_stdout(sys.stderr):  # the trainer's log; standard output is the table's
                done[place] = train_and_predict(config, system, seed, place, wanted[place])
        runs.setdefault(system.name, []).append(done[place])
    comparison = tabulate(config, systems, runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPARISON).write_text(json.dumps(asdict(comparison), ensure_ascii=False, indent=1), encoding="utf-8")
    return comparison, systems


def run(config: CompareConfig) -> str:
    """``llm-mer compare``: the table, also written as ``comparison.md``."""
    text = markdown(compare(config)[0])
    (Path(config.output) / TABLE).write_text(text + "\n", encoding="utf-8")
    return text
