"""``llm-mer evaluate``: what a checkpoint scores, beside the trivial baselines, with intervals, under named conditions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mer.adapters.base import MODALITIES, FusionAdapter
from llm_mer.data.corruption import CORRUPTIONS, FeatureCache, Reader
from llm_mer.data.dataset import MerDataset
from llm_mer.decoding.dialogue import decode
from llm_mer.errors import UserError
from llm_mer.evaluation.bootstrap import headline_intervals
from llm_mer.evaluation.curves import Area, areas
from llm_mer.evaluation.journal import JOURNAL, Journal, checkpoint_fingerprint, predict_all
from llm_mer.evaluation.metrics import compute_metrics, majority_baseline
from llm_mer.evaluation.subsets import EVERYTHING, TAG, check_groupings, subset_names, subsets_of
from llm_mer.prediction import Prediction
from llm_mer.processes import Processes
from llm_mer.tasks import Task

if TYPE_CHECKING:
    from llm_mer.checkpoint import CheckpointDescription
    from llm_mer.inference import MerPipeline

PREDICTIONS, EVALUATION = "predictions.jsonl", "evaluation.json"
NOISY_FEATURES = "noisy_features"
"""Folder of features that were extracted again, in the output folder; another evaluation into it finds them."""

AS_IS, GENERATION, DIALOGUE = "as is", "free generation", "dialogue decoder"


@dataclass
class EvaluateConfig:
    """Options of ``llm-mer evaluate``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True})
    data: list[str] = field(
        default_factory=list, metadata={"help": "a store, or FORMAT:PATH; several are evaluated in turn", "required": True}
    )
    output: str = field(
        default="",
        metadata={
            "help": "folder of evaluation.json and predictions.jsonl (default: CHECKPOINT/evaluation); several stores each "
            "have a folder in it, named like the store"
        },
    )
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "CHECKPOINT holds a folder seed-N for each of these seeds (default: all it holds); mean ± std"},
    )
    split: str = field(default="test", metadata={"help": "which split"})
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    limit: int | None = field(default=None, metadata={"help": "only so many utterances"})
    conditions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "also score under conditions: shuffle:audio,vision (taken from other utterances), without:text "
            "(missing), subsets (every subset of the modalities), or damage: missing:RATE (steps and words), "
            "drop_frames:RATE, word_errors:RATE, audio_snr:DB (white noise)"
        },
    )
    by: list[str] = field(
        default_factory=list,
        metadata={"help": "also score by length of the transcript, turn of the conversation, or both: length turn"},
    )
    generate: bool = field(default=False, metadata={"help": "also answer by free generation, unparseable rate measured"})
    dialogue_decoder: str = field(
        default="none",
        metadata={
            "help": "also decode whole dialogues (Dialogical Emotion Decoder)",
            "choices": ["none", "offline", "online"],
        },
    )
    score_statistic: str = field(
        default="median",
        metadata={"help": "which point of a score's distribution answers", "choices": ["median", "mean", "mode"]},
    )
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples for the 95 % intervals"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap and of shuffling"})
    batch_size: int = field(default=64, metadata={"help": "questions per forward"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone folder instead of the recorded one"})
    keep_features: bool = field(default=False, metadata={"help": "keep fused vectors, for the report's t-SNE"})

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            self.data = [self.data]


@dataclass(frozen=True)
class Condition:
    """One way in which what the model sees is changed.

    Attributes:
        name: in tables and files. kind: ``shuffle``, ``without`` or a kind of corruption.
        modalities: that are shuffled or left out. amount: of the corruption.
    """

    name: str
    kind: str
    modalities: tuple[str, ...] = ()
    amount: float | None = None


@dataclass
class Row:
    """Scores of one condition, task, language and subset.

    ``metrics`` as in METRICS of the task's convention, ``intervals`` 95 % bootstrap of the headline ones, ``baseline`` what
    the row's own majority class or mean score would get: no constant answer does better on accuracy. ``by`` says what the
    subset is one of: a tag, a length, a turn.
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


@dataclass
class Evaluation:
    """Everything a report needs about one checkpoint on one split.

    ``conditions`` are those asked for, in order; ``areas`` the areas under the curves of damage with several amounts.
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
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (folder / EVALUATION).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read it back. Raises :class:`UserError` where there is none."""
        path = folder / EVALUATION
        if not path.is_file():
            raise UserError(f"{folder}: no {EVALUATION}; write it with `llm-mer evaluate`")
        entry = json.loads(path.read_text(encoding="utf-8"))
        entry["rows"] = [Row(**row) for row in entry["rows"]]
        entry["conditions"] = [
            Condition(**{**condition, "modalities": tuple(condition["modalities"])})
            for condition in entry.get("conditions", [])
        ]
        entry["areas"] = [Area(**area) for area in entry.get("areas", [])]
        return cls(**entry)


def save_predictions(path: Path, by_condition: dict[str, list[Prediction]]) -> None:
    """One JSONL line a prediction, its condition beside it: any metric can be recomputed without the model."""
    with path.open("w", encoding="utf-8") as stream:
        for condition, predictions in by_condition.items():
            for prediction in predictions:
                line = {"condition": condition, **prediction.to_dict()}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def load_predictions(path: Path) -> dict[str, list[Prediction]]:
    """Read :func:`save_predictions` back."""
    found: dict[str, list[Prediction]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            entry = json.loads(line)
            found.setdefault(entry.pop("condition"), []).append(Prediction.from_dict(entry))
    return found


# --- conditions -------------------------------------------------------------------------------------------------------


def parse_conditions(texts: Sequence[str], available: Sequence[str]) -> dict[str, Condition]:
    """Conditions by name from ``shuffle:audio,vision``, ``without:text``, ``subsets`` and ``missing:0.3``.

    Raises:
        UserError: another word, a modality the model does not read, an amount out of range, or nothing left.
    """
    found: list[Condition] = []
    for text in texts:
        kind, _, rest = text.partition(":")
        if text == "subsets":
            for number in range(1, 2 ** len(available) - 1):
                kept = [m for i, m in enumerate(available) if number >> i & 1]
                hidden = tuple(m for m in available if m not in kept)
                found.append(Condition(f"{' + '.join(kept)} only", "without", hidden))
        elif kind in CORRUPTIONS:
            found.append(_damage(text, kind, rest, available))
        else:
            found.append(_changed_modalities(text, kind, rest, available))
    return {condition.name: condition for condition in found}


def _damage(text: str, kind: str, rest: str, available: Sequence[str]) -> Condition:
    corruption = CORRUPTIONS[kind]
    try:
        amount = float(rest)
    except ValueError:
        example = f"{kind}:0.3" if corruption.is_rate else f"{kind}:10"
        raise UserError(f"condition {text!r}: {rest!r} is no number; write {example}") from None
    corruption.check_amount(amount)
    if corruption.needs is not None and corruption.needs not in available:
        raise UserError(f"condition {text!r}: the checkpoint reads {', '.join(available)}, not {corruption.needs}")
    return Condition(corruption.name(amount), kind, amount=amount)


def _changed_modalities(text: str, kind: str, rest: str, available: Sequence[str]) -> Condition:
    modalities = tuple(part.strip() for part in rest.split(",") if part.strip())
    if kind not in ("shuffle", "without") or not modalities:
        known = ", ".join(f"{name}:{'RATE' if cls.is_rate else 'DB'}" for name, cls in CORRUPTIONS.items())
        raise UserError(f"condition {text!r}: write shuffle:audio,vision, without:text, subsets, or one of {known}")
    unknown = [m for m in modalities if m not in available]
    if unknown:
        raise UserError(f"condition {text!r}: the checkpoint reads {', '.join(available)}, not {', '.join(unknown)}")
    if kind == "without" and set(modalities) == set(available):
        raise UserError(f"condition {text!r} leaves no modality")
    name = f"{' and '.join(modalities)} shuffled" if kind == "shuffle" else f"without {' and '.join(modalities)}"
    return Condition(name, kind, modalities)


def reader_of(description: CheckpointDescription, available: Sequence[str], cache: Path | None) -> Reader:
    """What the model of a checkpoint reads; features that are made again are kept in ``cache``, or in memory."""
    from llm_mer.features.extract import FeatureSettings

    settings = description.data.get("features")
    return Reader(
        tuple(available),
        str(description.model["text_source"]),
        None if settings is None else FeatureSettings.from_dict(settings),
        FeatureCache(cache),
    )


def under(dataset: MerDataset, condition: Condition, seed: int, reader: Reader) -> MerDataset:
    """The dataset under a condition.

    Raises:
        UserError: data that cannot be shuffled or damaged in this way.
    """
    if condition.kind == "shuffle":
        return dataset.shuffled(condition.modalities, seed)
    if condition.kind == "without":
        return dataset.without(condition.modalities)
    assert condition.amount is not None
    return dataset.corrupted(CORRUPTIONS[condition.kind].build(condition.amount, seed, dataset, reader))


def prepare_damage(dataset: MerDataset, every_row: bool, processes: Processes, progress: str | None = None) -> None:
    """Make the features of damaged utterances that have to be made again, each process its share.

    ``every_row`` where conversations are read too, which reach beyond the utterances that are asked about.
    """
    rows = range(len(dataset.utterances)) if every_row else dataset.rows
    mine = rows[processes.rank :: processes.world]
    shown = progress if processes.first else None
    for corruption in dataset.corruptions:
        corruption.prepare((dataset.utterances[row] for row in mine), len(mine), shown)
        processes.gather(None)  # what the others made is read from the cache


# --- dialogues --------------------------------------------------------------------------------------------------------


def decode_dialogues(
    predictions: Sequence[Prediction], task: Task, p_shift: float, mode: str = "offline"
) -> list[Prediction]:
    """Predictions of a classification task with each dialogue decoded whole (SYSTEMS, GatedxLSTM 5).

    ``offline`` is the paper's two passes, ``online`` emits each state when its utterance arrives. Utterances without a
    dialogue stay as they are.

    Raises:
        UserError: a dialogue without speakers.
    """
    from llm_mer.decoding.dialogue import OnlineDialogueDecoder

    groups: dict[tuple[str, str], list[int]] = {}
    for index, prediction in enumerate(predictions):
        if prediction.dialogue_id is not None:
            groups.setdefault((prediction.language, prediction.dialogue_id), []).append(index)
    decoded = list(predictions)
    for (_, dialogue), members in groups.items():
        members.sort(key=lambda i: predictions[i].turn or 0)
        speakers = [predictions[i].speaker for i in members]
        if any(speaker is None for speaker in speakers):
            raise UserError(f"dialogue {dialogue!r} has utterances without a speaker; the dialogue decoder needs them")
        scores = np.array([predictions[i].log_probabilities for i in members])
        if mode == "online":
            decoder = OnlineDialogueDecoder(scores.shape[1], p_shift)
            states = [decoder.push(row, speaker) for row, speaker in zip(scores, speakers, strict=True)]
        else:
            states = [int(s) for s in decode(scores, speakers, p_shift)]
        for index, state in zip(members, states, strict=True):
            decoded[index] = dataclasses.replace(predictions[index], value=task.label_names[state])
    return decoded


def check_dialogues(dataset: MerDataset, tasks: Sequence[Task], shifts: dict[str, float], checkpoint: str) -> None:
    """What the dialogue decoder needs, told before anything is predicted.

    Raises:
        UserError: no task with classes, no p0 in the checkpoint, or an utterance of a dialogue without a speaker.
    """
    classified = [task.name for task in tasks if task.kind == "classification"]
    if not classified:
        raise UserError("--dialogue_decoder: no task has classes to decode")
    if any(name not in shifts for name in classified):
        raise UserError(f"the training data of {checkpoint} had no dialogues: no p0 for the dialogue decoder")
    for row in sorted({q.row for q in dataset.questions if q.task.name in classified}):
        if dataset._dialogue[row] is not None and dataset._speaker[row] is None:
            raise UserError(
                f"dialogue {dataset._dialogue[row]!r} has utterances without a speaker; the dialogue decoder needs them"
            )


# --- rows -------------------------------------------------------------------------------------------------------------


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
    known = [p for p in predictions if p.task == task.name and p.truth is not None]
    languages = sorted({p.language for p in known})
    rows = []
    for language in [*languages, *([EVERYTHING] if len(languages) > 1 else [])]:
        spoken = [p for p in known if language in (p.language, EVERYTHING)]
        for grouping, subset in [(TAG, EVERYTHING), *subsets_of(spoken, by)]:
            chosen = [p for p in spoken if subset == EVERYTHING or subset in subset_names(p, grouping)]
            truth = [p.truth for p in chosen]
            values = [p.parsed if use_parsed else p.value for p in chosen]
            log_probs = intervals = None
            if not use_parsed and task.kind == "classification" and condition != DIALOGUE:
                log_probs = np.array([p.log_probabilities for p in chosen])
            if not use_parsed and task.kind == "regression" and all(p.interval is not None for p in chosen):
                intervals = np.array([p.interval for p in chosen])
            metrics = compute_metrics(task, truth, values, log_probs, intervals)
            rows.append(
                Row(
                    condition,
                    task.name,
                    language,
                    subset,
                    len(chosen),
                    metrics["unparseable_rate"],
                    {k: float(v) for k, v in metrics.items() if k not in ("n", "unparseable_rate")},
                    headline_intervals(task, truth, values, resamples, seed),
                    {k: float(v) for k, v in majority_baseline(task, truth).items() if k != "n"},
                    grouping,
                )
            )
    if len(languages) == 1:
        # A report asks for both languages together; with one language they are the same rows.
        rows += [dataclasses.replace(row, language=EVERYTHING) for row in list(rows)]
    return rows


# --- the whole way ----------------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """One store, read and checked, with nothing predicted yet.

    ``changed`` holds the dataset under each condition; ``settings`` all that the predictions come from.
    """

    place: str
    folder: Path
    dataset: MerDataset
    changed: dict[str, MerDataset]
    conditions: list[Condition]
    tasks: list[Task]
    fingerprint: str
    settings: dict[str, Any]


def output_folder(output: str, default: Path) -> Path:
    """Where files go. Raises :class:`UserError` for a file in its place."""
    folder = Path(output or default)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: it is a file, not a folder")
    return folder


def output_folders(config: EvaluateConfig) -> dict[str, Path]:
    """The output folder of each store: the one named, or with several stores one in it each, named like the store.

    Raises:
        UserError: a file in its place, or two stores of one name.
    """
    folder = output_folder(config.output, Path(config.checkpoint) / "evaluation")
    if len(config.data) == 1:
        return {config.data[0]: folder}
    places: dict[str, Path] = {}
    for place in config.data:
        name = Path(place).resolve().name
        same = next((other for other, path in places.items() if path.name == name), None)
        if same is not None:
            raise UserError(f"--data: {same} and {place} are both called {name!r}; evaluate them one by one")
        places[place] = output_folder("", folder / name)
    return places


def load_pipeline(config: EvaluateConfig, processes: Processes) -> MerPipeline:
    """The checkpoint, with the options of its answers.

    Raises:
        UserError: options out of range, or a checkpoint that does not fit.
    """
    from llm_mer.inference import MerPipeline

    for name in ("resamples", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it must be at least 1")
    check_groupings(config.by)
    return MerPipeline.from_checkpoint(
        config.checkpoint,
        backbone=config.backbone,
        device=processes.device,
        batch_size=config.batch_size,
        generate=config.generate,
        score_statistic=config.score_statistic,
        keep_features=config.keep_features,
    )


def plan(config: EvaluateConfig, pipeline: MerPipeline, place: str, folder: Path) -> Planned:
    """Read a store and check everything that can be checked before the first prediction.

    Raises:
        UserError: a split, task, language or condition that does not fit.
    """
    from llm_mer.checkpoint import stack_versions
    from llm_mer.data.reading import find_split, read_utterances

    splits, _, fingerprint = read_utterances(place)
    utterances = find_split(splits, config.split, place)
    description = pipeline.description
    tasks = pipeline.named_tasks(config.tasks)
    dataset = pipeline.questions(utterances, tasks, languages=config.languages, limit=config.limit)
    if not len(dataset):
        raise UserError(f"{place}, split {config.split!r}: no utterance has a label for {', '.join(t.name for t in tasks)}")
    available = modalities_of(pipeline)
    reader = reader_of(description, available, folder / NOISY_FEATURES)
    conditions = parse_conditions(config.conditions, available)
    changed = {name: under(dataset, condition, config.seed, reader) for name, condition in conditions.items()}
    if config.dialogue_decoder != "none":
        check_dialogues(dataset, tasks, description.shift_probability, config.checkpoint)
    options = ("split", "tasks", "languages", "limit", "seed", "batch_size", "generate", "score_statistic", "keep_features")
    settings = {name: getattr(config, name) for name in options} | {
        "checkpoint": checkpoint_fingerprint(config.checkpoint),
        "backbone": config.backbone,
        "data": fingerprint,
        "device": pipeline.predictor.device.type,
        "versions": stack_versions(),
    }
    return Planned(place, folder, dataset, changed, list(conditions.values()), tasks, fingerprint, settings)


def modalities_of(pipeline: MerPipeline) -> list[str]:
    """What the checkpoint's adapter reads."""
    adapter = pipeline.predictor.adapter
    assert isinstance(adapter, FusionAdapter)
    return [m for m in MODALITIES if m in adapter.config.modalities]


def predict_conditions(
    config: EvaluateConfig,
    pipeline: MerPipeline,
    planned: Planned,
    processes: Processes,
    journal: Journal | None,
    progress: bool,
) -> dict[str, list[Prediction]]:
    """Answers as is and under every condition, on every process."""
    predictor = pipeline.predictor
    by_condition = {}
    for name, dataset in {AS_IS: planned.dataset, **planned.changed}.items():
        predictor.generate = config.generate and name == AS_IS
        prepare_damage(dataset, predictor.use_context, processes, f"features, {name}" if progress else None)
        by_condition[name] = predict_all(predictor, dataset, name, processes, journal, progress)
    return by_condition


def score(
    config: EvaluateConfig, pipeline: MerPipeline, planned: Planned, by_condition: dict[str, list[Prediction]]
) -> Evaluation:
    """The scores of predictions; those of the dialogue decoder are added to ``by_condition``."""
    from llm_mer.run_manifest import read_manifest
    from llm_mer.training import diagnose

    description, backbone = pipeline.description, pipeline.description.backbone
    evaluation = Evaluation(
        name=Path(config.checkpoint).resolve().name,
        checkpoint={
            "adapter": description.model["adapter"],
            "modalities": modalities_of(pipeline),
            "backbone": None if backbone is None else backbone.name,
            "parameters": description.training.get("parameters"),
            "seed": description.training.get("seed"),
            "trained_on": description.data,
            "versions": description.versions,
            "shift_probability": description.shift_probability,
            "run": read_manifest(Path(config.checkpoint)),
        },
        data=f"{Path(planned.place).name} ({planned.fingerprint[:12]})",
        split=config.split,
        seed=config.seed,
        resamples=config.resamples,
        warnings=diagnose(pipeline.predictor.adapter, by_condition[AS_IS]),
        conditions=planned.conditions,
    )
    shared: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed, "by": config.by}
    for task in planned.tasks:
        for name in [AS_IS, *planned.changed]:
            evaluation.rows += score_rows(name, by_condition[name], task, **shared)
        if config.generate:
            evaluation.rows += score_rows(GENERATION, by_condition[AS_IS], task, use_parsed=True, **shared)
        if config.dialogue_decoder != "none" and task.kind == "classification":
            own = [p for p in by_condition[AS_IS] if p.task == task.name]
            decoded = decode_dialogues(own, task, description.shift_probability[task.name], config.dialogue_decoder)
            by_condition.setdefault(DIALOGUE, []).extend(decoded)
            evaluation.rows += score_rows(DIALOGUE, decoded, task, **shared)
    evaluation.areas = areas(evaluation.rows, planned.conditions, AS_IS)
    return evaluation


def evaluate(config: EvaluateConfig, progress: bool = True) -> tuple[Evaluation, dict[str, list[Prediction]]]:
    """Evaluate a checkpoint on one store; returns the scores and the predictions by condition, and writes no table.

    Raises:
        UserError: a checkpoint, split, task, language or condition that does not fit.
    """
    if len(config.data) != 1:
        raise UserError(f"--data {' '.join(config.data)}: name one store")
    processes = Processes.join()
    pipeline = load_pipeline(config, processes)
    (folder,) = output_folders(config).values()
    planned = plan(config, pipeline, config.data[0], folder)
    by_condition = predict_conditions(config, pipeline, planned, processes, None, progress)
    return score(config, pipeline, planned, by_condition), by_condition


def run(config: EvaluateConfig) -> str | None:
    """``llm-mer evaluate``: evaluate each store, write its files, return the tables (on the first process; else None).

    Finished batches wait in ``predictions.partial.jsonl`` of the output folder until all is written, so an interrupted
    call goes on where it stopped.
    """
    from llm_mer.evaluation.seeds import evaluate_seeds, holds_seeds

    if holds_seeds(config):
        return evaluate_seeds(config)
    processes = Processes.join()
    folders = output_folders(config)
    pipeline = load_pipeline(config, processes)
    plans = [plan(config, pipeline, place, folder) for place, folder in folders.items()]
    journals = [Journal.open(planned.folder / JOURNAL, planned.settings) for planned in plans] if processes.first else None
    texts = []
    for number, planned in enumerate(plans):
        journal = None if journals is None else journals[number]
        by_condition = predict_conditions(config, pipeline, planned, processes, journal, progress=True)
        if journal is None:
            continue
        evaluation = score(config, pipeline, planned, by_condition)
        planned.folder.mkdir(parents=True, exist_ok=True)
        save_predictions(planned.folder / PREDICTIONS, by_condition)
        evaluation.save(planned.folder)
        journal.remove()
        head = [f"{planned.place}:"] if len(plans) > 1 else []
        warnings = [f"warning: {w}" for w in evaluation.warnings]
        texts.append("\n".join([*head, *warnings, table(evaluation), f"written to {planned.folder}"]))
    processes.gather(None)  # nobody leaves before the files are there
    return "\n\n".join(texts) if processes.first else None


def table(evaluation: Evaluation) -> str:
    """Languages and subsets as text: score with its interval, n, baseline, unparseable rate. The file has every crossing."""
    lines = []
    rows = [row for row in evaluation.rows if EVERYTHING in (row.subset, row.language)]
    width = max([16, *(len(row.subset) for row in rows)])
    for row in rows:
        names = [name for name in ("accuracy", "weighted_f1", "ua", "mae", "corr") if name in row.intervals]
        shown = []
        for name in names:
            low, high = row.intervals[name]
            shown.append(
                f"{name} {row.metrics[name]:.3f} [{low:.3f}, {high:.3f}] "
                f"(baseline {row.baseline.get(name, float('nan')):.3f})"
            )
        head = f"{row.condition:<28} {row.task:<10} {row.language:<3} {row.subset:<{width}} n={row.n:<5}"
        lines.append(f"{head} {'  '.join(shown)}  unparseable {row.unparseable_rate:.3f}")
    for area in evaluation.areas:
        word = "AUILC" if area.kind == "missing" else "area"
        span = f"{area.amounts[0]:g} to {area.amounts[-1]:g}"
        lines.append(
            f"{area.kind:<28} {area.task:<10} {area.language:<3} {area.metric} {word} {area.area:.3f} over {span} "
            f"(mean {area.mean:.3f})"
        )
    return "\n".join(lines)
