"""``llm-mer evaluate``: what a checkpoint scores, beside the trivial baselines, with intervals, under named conditions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.adapters.base import MODALITIES, FusionAdapter
from llm_mer.data.dataset import MerDataset
from llm_mer.decoding.dialogue import decode
from llm_mer.errors import UserError
from llm_mer.evaluation.bootstrap import headline_intervals
from llm_mer.evaluation.metrics import compute_metrics, majority_baseline
from llm_mer.prediction import Prediction
from llm_mer.tasks import Task

PREDICTIONS, EVALUATION = "predictions.jsonl", "evaluation.json"
AS_IS, GENERATION, DIALOGUE = "as is", "free generation", "dialogue decoder"
EVERYTHING = "all"


@dataclass
class EvaluateConfig:
    """Options of ``llm-mer evaluate``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True})
    data: str = field(default="", metadata={"help": "a store, or FORMAT:PATH", "required": True})
    output: str = field(
        default="", metadata={"help": "folder of evaluation.json and predictions.jsonl (default: CHECKPOINT/evaluation)"}
    )
    split: str = field(default="test", metadata={"help": "which split"})
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    limit: int | None = field(default=None, metadata={"help": "only so many utterances"})
    conditions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "also score under conditions: shuffle:audio,vision (taken from other utterances), without:text "
            "(missing), or subsets (every subset of the modalities)"
        },
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


@dataclass
class Row:
    """Scores of one condition, task, language and subset.

    ``metrics`` as in METRICS of the task's convention, ``intervals`` 95 % bootstrap of the headline ones, ``baseline`` what
    the row's own majority class or mean score would get: no constant answer does better on accuracy.
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


@dataclass
class Evaluation:
    """Everything a report needs about one checkpoint on one split."""

    name: str
    checkpoint: dict[str, Any]
    data: str
    split: str
    seed: int
    resamples: int
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

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


def parse_conditions(texts: Sequence[str], available: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """``{name: (kind, modalities)}`` from ``shuffle:audio,vision``, ``without:text`` and ``subsets``.

    Raises:
        UserError: another word, a modality the model does not read, or nothing left.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for text in texts:
        if text == "subsets":
            for number in range(1, 2 ** len(available) - 1):
                kept = [m for i, m in enumerate(available) if number >> i & 1]
                hidden = tuple(m for m in available if m not in kept)
                found[f"{' + '.join(kept)} only"] = ("without", hidden)
            continue
        kind, _, rest = text.partition(":")
        modalities = tuple(part.strip() for part in rest.split(",") if part.strip())
        if kind not in ("shuffle", "without") or not modalities:
            raise UserError(f"condition {text!r}: write shuffle:audio,vision, without:text, or subsets")
        unknown = [m for m in modalities if m not in available]
        if unknown:
            raise UserError(f"condition {text!r}: the checkpoint reads {', '.join(available)}, not {', '.join(unknown)}")
        if kind == "without" and set(modalities) == set(available):
            raise UserError(f"condition {text!r} leaves no modality")
        name = f"{' and '.join(modalities)} shuffled" if kind == "shuffle" else f"without {' and '.join(modalities)}"
        found[name] = (kind, modalities)
    return found


def under(dataset: MerDataset, kind: str, modalities: Sequence[str], seed: int) -> MerDataset:
    """The dataset under a condition."""
    return dataset.shuffled(modalities, seed) if kind == "shuffle" else dataset.without(modalities)


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


def subsets_of(predictions: Iterable[Prediction]) -> list[str]:
    """``all`` and every tag."""
    return [EVERYTHING, *sorted({tag for p in predictions for tag in p.tags})]


def score_rows(
    condition: str,
    predictions: Sequence[Prediction],
    task: Task,
    resamples: int,
    seed: int,
    use_parsed: bool = False,
) -> list[Row]:
    """Rows of a task: each language and both together, the whole and every tagged subset.

    ``use_parsed`` scores what a free generation was read as, None where it could not be read.
    """
    known = [p for p in predictions if p.task == task.name and p.truth is not None]
    languages = sorted({p.language for p in known})
    rows = []
    for language in [*languages, *([EVERYTHING] if len(languages) > 1 else [])]:
        spoken = [p for p in known if language in (p.language, EVERYTHING)]
        for subset in subsets_of(spoken):
            chosen = [p for p in spoken if subset == EVERYTHING or subset in p.tags]
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
                )
            )
    if len(languages) == 1:
        # A report asks for both languages together; with one language they are the same rows.
        rows += [dataclasses.replace(row, language=EVERYTHING) for row in list(rows)]
    return rows


# --- the whole way ----------------------------------------------------------------------------------------------------


def evaluate(config: EvaluateConfig, progress: bool = True) -> tuple[Evaluation, dict[str, list[Prediction]]]:
    """Evaluate a checkpoint; returns the scores and the predictions by condition.

    Raises:
        UserError: a checkpoint, split, task, language or condition that does not fit.
    """
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.inference import MerPipeline
    from llm_mer.training import diagnose

    for name in ("resamples", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it must be at least 1")
    splits, _, fingerprint = read_utterances(config.data)
    utterances = find_split(splits, config.split, config.data)
    pipeline = MerPipeline.from_checkpoint(
        config.checkpoint,
        backbone=config.backbone,
        batch_size=config.batch_size,
        generate=config.generate,
        score_statistic=config.score_statistic,
        keep_features=config.keep_features,
    )
    predictor, description = pipeline.predictor, pipeline.description
    names = {task.name: task for task in pipeline.tasks}
    for name in config.tasks or ():
        if name not in names:
            raise UserError(f"the checkpoint was not trained on task {name!r}; it knows {', '.join(names)}")
    tasks = [names[name] for name in config.tasks] if config.tasks else list(names.values())
    dataset = MerDataset(
        utterances,
        tasks,
        languages=config.languages,
        limit=config.limit,
        context_window=int(description.context.get("window", 8)),
        bidirectional=bool(description.context.get("bidirectional", False)),
    )
    if not len(dataset):
        raise UserError(
            f"{config.data}, split {config.split!r}: no utterance has a label for {', '.join(t.name for t in tasks)}"
        )
    adapter = predictor.adapter
    assert isinstance(adapter, FusionAdapter)
    available = [m for m in MODALITIES if m in adapter.config.modalities]
    conditions = parse_conditions(config.conditions, available)
    changed = {name: under(dataset, kind, modalities, config.seed) for name, (kind, modalities) in conditions.items()}
    if config.dialogue_decoder != "none":
        check_dialogues(dataset, tasks, description.shift_probability, config.checkpoint)
    by_condition = {AS_IS: predictor.predict(dataset, progress=AS_IS if progress else None)}
    predictor.generate = False
    for name, other in changed.items():
        by_condition[name] = predictor.predict(other, progress=name if progress else None)
    backbone = description.backbone
    evaluation = Evaluation(
        name=Path(config.checkpoint).resolve().name,
        checkpoint={
            "adapter": description.model["adapter"],
            "modalities": available,
            "backbone": None if backbone is None else backbone.name,
            "parameters": description.training.get("parameters"),
            "seed": description.training.get("seed"),
            "trained_on": description.data,
            "versions": description.versions,
            "shift_probability": description.shift_probability,
        },
        data=f"{Path(config.data).name} ({fingerprint[:12]})",
        split=config.split,
        seed=config.seed,
        resamples=config.resamples,
        warnings=diagnose(adapter, by_condition[AS_IS]),
    )
    for task in tasks:
        for name, predictions in by_condition.items():
            evaluation.rows += score_rows(name, predictions, task, config.resamples, config.seed)
        if config.generate:
            evaluation.rows += score_rows(
                GENERATION, by_condition[AS_IS], task, config.resamples, config.seed, use_parsed=True
            )
        if config.dialogue_decoder != "none" and task.kind == "classification":
            own = [p for p in by_condition[AS_IS] if p.task == task.name]
            decoded = decode_dialogues(own, task, description.shift_probability[task.name], config.dialogue_decoder)
            by_condition.setdefault(DIALOGUE, []).extend(decoded)
            evaluation.rows += score_rows(DIALOGUE, decoded, task, config.resamples, config.seed)
    return evaluation, by_condition


def run(config: EvaluateConfig) -> str:
    """``llm-mer evaluate``: evaluate, write both files, return the table."""
    folder = Path(config.output or Path(config.checkpoint) / "evaluation")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: it is a file, not a folder")
    evaluation, by_condition = evaluate(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_predictions(folder / PREDICTIONS, by_condition)
    evaluation.save(folder)
    return "\n".join([*(f"warning: {w}" for w in evaluation.warnings), table(evaluation), f"written to {folder}"])


def table(evaluation: Evaluation) -> str:
    """Languages and subsets as text: score with its interval, n, baseline, unparseable rate. The file has every crossing."""
    lines = []
    for row in evaluation.rows:
        if EVERYTHING not in (row.subset, row.language):
            continue
        names = [name for name in ("accuracy", "weighted_f1", "ua", "mae", "corr") if name in row.intervals]
        shown = []
        for name in names:
            low, high = row.intervals[name]
            shown.append(
                f"{name} {row.metrics[name]:.3f} [{low:.3f}, {high:.3f}] "
                f"(baseline {row.baseline.get(name, float('nan')):.3f})"
            )
        head = f"{row.condition:<28} {row.task:<10} {row.language:<3} {row.subset:<16} n={row.n:<5}"
        lines.append(f"{head} {'  '.join(shown)}  unparseable {row.unparseable_rate:.3f}")
    return "\n".join(lines)
