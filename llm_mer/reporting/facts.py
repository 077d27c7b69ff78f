"""The three facts that the quickstart must show, each decided by a stated rule from the numbers of an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.checkpoints.description import DESCRIPTION_FILE, TRAJECTORIES
from llm_mer.checkpoints.integrity import checkpoint_fingerprint, is_fingerprint_of
from llm_mer.errors import UserError
from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.conditions import AS_IS, GENERATION
from llm_mer.evaluation.metrics import compute_metrics
from llm_mer.evaluation.p_values import SIGNIFICANT, PValue
from llm_mer.evaluation.resampling import as_arrays, mean_absolute_error, paired_difference
from llm_mer.evaluation.rows import EVALUATION, PREDICTIONS, Evaluation, load_predictions
from llm_mer.evaluation.subsets import EVERYTHING, TAG, subset_names
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Label, Task
from llm_mer.storage.json_files import read_json
from llm_mer.storage.json_lines import read_json_lines

SUBSET = "neutral_words"
"""Utterances whose words do not reveal the emotion, so correct answers must come from audio or vision."""


@dataclass
class LoadedEvaluation:
    """An evaluation loaded from disk: scores, predictions by condition, and the enclosing checkpoint folder, if any."""

    evaluation: Evaluation
    predictions: dict[str, list[Prediction]]
    folder: Path
    checkpoint: Path | None = None

    @property
    def tasks(self) -> list[Task]:
        """Its tasks in the order of its rows."""
        return [reconstruct_task(self, name) for name in dict.fromkeys(row.task for row in self.evaluation.rows)]

    @property
    def languages(self) -> list[str]:
        """Its languages, without the rows over all languages."""
        return sorted({row.language for row in self.evaluation.rows} - {EVERYTHING})

    def known(
        self, condition: str, task: str, language: str = EVERYTHING, subset: str = EVERYTHING, by: str = TAG
    ) -> list[Prediction]:
        """Predictions with a truth for a task, language and subset: those from which its row was computed."""
        return [
            p
            for p in self.predictions.get(condition, [])
            if p.task == task
            and p.truth is not None
            and language in (p.language, EVERYTHING)
            and (subset == EVERYTHING or subset in subset_names(p, by))
        ]

    def read_log(self) -> list[dict[str, Any]]:
        """``log_history.json`` of the training; empty if it does not exist. Raises :class:`UserError` for no list."""
        path = None if self.checkpoint is None else self.checkpoint / "log_history.json"
        found = read_json(path) if path is not None and path.is_file() else []
        if not isinstance(found, list):
            raise UserError(f"{path}: damaged, holds {type(found).__name__} in place of a list")
        return found

    def read_trajectories(self) -> dict[str, list[tuple[float, np.ndarray]]]:
        """``trajectories.jsonl`` of the training: ``{name: [(epoch, (n, d)), …]}``; empty if it does not exist.

        Raises:
            UserError: naming file and line of an entry that no training writes.
        """
        path = None if self.checkpoint is None else self.checkpoint / TRAJECTORIES
        found: dict[str, list[tuple[float, np.ndarray]]] = {}
        if path is not None and path.is_file():
            for where, entry in read_json_lines(path):
                try:
                    points = np.array(entry["points"], dtype=float)
                    found.setdefault(str(entry["name"]), []).append((float(entry["epoch"]), points))
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{where}: not a line that a training writes (epoch, name, points): {error!r}") from None
        return found


def load_evaluation(place: str) -> LoadedEvaluation:
    """Load an evaluation from its own folder, or from the ``evaluation`` folder of a checkpoint.

    Raises:
        UserError: no evaluation there, missing predictions, or files that cannot be read, do not belong together, or were
            changed.
    """
    folder = Path(place)
    if not (folder / EVALUATION).is_file() and (folder / "evaluation" / EVALUATION).is_file():
        folder = folder / "evaluation"
    remedy = "write both again with `llm-mer evaluate`"
    try:
        evaluation = Evaluation.load(folder)
        if not (folder / PREDICTIONS).is_file():
            raise UserError(f"{folder}: no {PREDICTIONS} beside {EVALUATION}; write both with `llm-mer evaluate`")
        predictions = load_predictions(folder / PREDICTIONS)
    except UserError as error:
        if "damaged" not in str(error):
            raise
        raise UserError(f"{folder}: {EVALUATION} or {PREDICTIONS} cannot be read ({error}); {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:  # no JSON, or not with the fields of these files
        raise UserError(f"{folder}: {EVALUATION} or {PREDICTIONS} cannot be read ({error!r}); {remedy}") from None
    parent = folder.resolve().parent
    trained = any((parent / name).is_file() for name in ("llm_mer.json", "log_history.json"))
    loaded = LoadedEvaluation(evaluation, predictions, folder, parent if trained else None)
    check_checkpoint(loaded)
    for row in evaluation.rows:
        if (row.language, row.subset) == (EVERYTHING, EVERYTHING):
            count = len(loaded.known(AS_IS if row.condition == GENERATION else row.condition, row.task))
            if count != row.n:
                raise UserError(
                    f"{folder}: {EVALUATION} scores {row.n} answers of task {row.task} ({row.condition}), {PREDICTIONS} has "
                    f"{count}: they are from different runs; {remedy}"
                )
    check_scores(loaded)
    return loaded


CHECKED_METRICS = ("accuracy", "weighted_f1", "mae", "corr")
TOLERANCE = 1e-6


def check_scores(loaded: LoadedEvaluation) -> None:
    """Check the headline scores of each condition, task and language against the answers.

    Raises:
        UserError: a score that does not follow from the answers, as one of the files was changed.
    """
    tasks = {task.name: task for task in loaded.tasks}
    for row in loaded.evaluation.rows:
        known = row.subset == EVERYTHING and any(metric in row.metrics for metric in CHECKED_METRICS)
        free = row.condition == GENERATION
        answers = loaded.known(AS_IS if free else row.condition, row.task, row.language) if known else []
        if not answers:
            continue
        values = [p.parsed if free else p.value for p in answers]
        found = compute_metrics(tasks[row.task], [p.truth for p in answers], values)
        for metric in CHECKED_METRICS:
            stated, computed = row.metrics.get(metric, math.nan), found.get(metric, math.nan)
            if math.isfinite(stated) and not abs(stated - computed) <= TOLERANCE:
                raise UserError(
                    f"{loaded.folder}: {EVALUATION} says {metric} {stated:.6g} of task {row.task} ({row.condition}, "
                    f"{row.language}), the answers in {PREDICTIONS} make it {computed:.6g}: one of the files was changed; "
                    "write both again with `llm-mer evaluate`"
                )


def check_checkpoint(loaded: LoadedEvaluation) -> None:
    """Check that the scored model is the one in the folder around the evaluation.

    An evaluation that does not record which model it scored, as in earlier versions, gets a warning on the page.

    Raises:
        UserError: the folder now holds another model, as after a second training into the same folder.
    """
    folder, scored = loaded.checkpoint, loaded.evaluation.checkpoint_sha256
    if folder is None or not (folder / DESCRIPTION_FILE).is_file():
        return
    if scored is None:
        loaded.evaluation.warnings.append(
            f"This evaluation does not record which model it scored; it may be another one than {folder.name} holds now."
        )
    elif not is_fingerprint_of(scored, folder):
        found = checkpoint_fingerprint(folder)
        raise UserError(
            f"{loaded.folder}: it scored another model ({scored[:12]}) than {folder} holds now ({found[:12]}); "
            "evaluate it again with `llm-mer evaluate`"
        )


def reconstruct_task(loaded: LoadedEvaluation, name: str) -> Task:
    """Reconstruct a task, as far as metrics need it, from the evaluation alone.

    The checkpoint or a custom task file may no longer exist, so neither is used.
    """
    metrics: dict[str, float] = {}
    for row in loaded.evaluation.rows:
        if row.task == name:
            metrics.update(row.baseline)  # free generation without any parseable answer has no metrics
            metrics.update(row.metrics)
    predictions = [p for p in loaded.predictions.get(AS_IS, []) if p.task == name]
    answers: dict[str, None] = {}
    for prediction in predictions:
        answers.update(dict.fromkeys(prediction.probabilities))
    if "accuracy" in metrics:
        names = list(answers) or [key.removeprefix("f1/") for key in metrics if key.startswith("f1/")]
        labels = tuple(Label(label, {}) for label in names)
        return Task(name, "classification", name, labels, metrics="iemocap" if "ua" in metrics else "classification")
    scores = [float(a) for a in answers] or [float(p.truth) for p in predictions if p.truth is not None] or [0.0]
    convention = "sims" if "acc2_weak" in metrics else "plain" if "ccc" in metrics else "mosi"
    return Task(name, "regression", name, score_range=(min(scores), max(scores)), metrics=convention)


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass
class FactLine:
    """One number of a fact: its meaning, number of utterances, interval and reference value.

    ``holds`` is None for a number that is only shown and does not affect the verdict.
    """

    what: str
    n: int
    value: float
    interval: tuple[float, float] | None = None
    against: str = ""
    p: PValue | None = None
    holds: bool | None = None

    def text(self) -> str:
        """One line."""
        shown = f"{self.what}: {self.value:.3f}"
        if self.interval is not None:
            shown += f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        shown += f", n={self.n}"
        shown += f", {self.against}" if self.against else ""
        shown += "" if self.p is None else f", {self.p}"
        return shown + (f": {verdict(self.holds)}" if self.holds is not None else "")


@dataclass
class Fact:
    """A claim, the rule that decides it, its numbers, and whether it holds (None: cannot be judged, see ``why``)."""

    claim: str
    rule: str
    lines: list[FactLine] = field(default_factory=list)
    holds: bool | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        return verdict(self.holds)

    def text(self) -> str:
        """The fact as lines of text."""
        lines = [f"{self.claim}: {self.verdict}", f"  rule: {self.rule}"]
        lines += [f"  {self.why}"] if self.why else []
        return "\n".join(lines + [f"  {line.text()}" for line in self.lines])

    def judge(self) -> Fact:
        """Set the verdict: the fact holds if every counted line holds; without any it cannot be judged."""
        counted = [line.holds for line in self.lines if line.holds is not None]
        self.holds = all(counted) if counted else None
        return self


def verdict(holds: bool | None) -> str:
    """``holds``, ``does not hold``, ``cannot be judged``."""
    return "cannot be judged" if holds is None else "holds" if holds else "does not hold"


def majority_class_share(truth: Sequence[Any]) -> float:
    """Share of the most frequent class: the best accuracy of a constant answer on these truths."""
    return Counter(truth).most_common(1)[0][1] / len(truth)


def constant_mean_error(task: Task, truth: Sequence[Any]) -> float:
    """Mean absolute error of always answering the mean of these truths."""
    (scores,) = as_arrays(task, truth)
    return float(mean_absolute_error(scores[None], np.full_like(scores, scores.mean())[None])[0])


def beats_baselines(main: LoadedEvaluation) -> Fact:
    """Fact 1: in every language, all tasks beat a constant answer."""
    fact = Fact(
        "In each language the model beats a constant answer",
        "for every language and task the 95 % interval lies entirely on the better side of the baseline: always the "
        "most frequent class (or mean score) of the same truths.",
    )
    for task in main.tasks:
        for language in main.languages:
            row = main.evaluation.find(AS_IS, task.name, language)
            if row is None:
                continue
            truth = [p.truth for p in main.known(AS_IS, task.name, language)]
            if task.kind == "classification" and "accuracy" in row.intervals:
                baseline = max(row.baseline["accuracy"], majority_class_share(truth))
                fact.lines.append(
                    FactLine(
                        f"{language} {task.name} accuracy",
                        row.n,
                        row.metrics["accuracy"],
                        row.intervals["accuracy"],
                        f"majority baseline {baseline:.3f}",
                        holds=row.intervals["accuracy"][0] > baseline,
                    )
                )
            elif "mae" in row.intervals:
                baseline = min(row.baseline["mae"], constant_mean_error(task, truth))
                fact.lines.append(
                    FactLine(
                        f"{language} {task.name} MAE",
                        row.n,
                        row.metrics["mae"],
                        row.intervals["mae"],
                        f"mean baseline {baseline:.3f}",
                        holds=row.intervals["mae"][1] < baseline,
                    )
                )
    fact.why = "" if fact.lines else "the evaluation has no row with an interval"
    return fact.judge()


def main_class_task(main: LoadedEvaluation) -> Task | None:
    """``emotion``, else the first classification task."""
    tasks = [task for task in main.tasks if task.kind == "classification"]
    return next((task for task in tasks if task.name == "emotion"), tasks[0] if tasks else None)


def shuffled_condition(main: LoadedEvaluation) -> str | None:
    """The condition in which all modalities of the checkpoint except text come from other utterances."""
    non_text_modalities = {m for m in main.evaluation.checkpoint.get("modalities", []) if m != "text"}
    for condition in main.predictions:
        if (
            condition.endswith(" shuffled")
            and set(condition.removesuffix(" shuffled").split(" and ")) == non_text_modalities
        ):
            return condition
    return None


def pair_answers(
    one: Sequence[Prediction], two: Sequence[Prediction], what: str
) -> tuple[list[Any], list[Any], list[Any], Clusters]:
    """Pair two sets of answers by utterance: truths, first and second answers in the same order, and their clusters.

    Raises:
        UserError: the two do not answer the same utterances, or their truths differ.
    """
    first, second = ({(p.language, p.id): p for p in answers} for answers in (one, two))
    if first.keys() != second.keys():
        raise UserError(
            f"{what}: they do not answer the same utterances ({len(first)} and {len(second)}, "
            f"{len(first.keys() & second.keys())} in common); evaluate both on the same split without --limit"
        )
    if any(first[key].truth != second[key].truth for key in first):
        raise UserError(f"{what}: the same utterances have different truths; evaluate both on the same data")
    keys = list(first)
    truth = [first[k].truth for k in keys]
    clusters = Clusters.of([first[k] for k in keys])
    return truth, [first[k].value for k in keys], [second[k].value for k in keys], clusters


def subset_accuracy(loaded: LoadedEvaluation, task: Task, condition: str, what: str) -> FactLine | None:
    """Accuracy on :data:`SUBSET` over all languages, from the evaluation's own row."""
    row = loaded.evaluation.find(condition, task.name, EVERYTHING, SUBSET)
    if row is None or "accuracy" not in row.intervals:
        return None
    return FactLine(what, row.n, row.metrics["accuracy"], row.intervals["accuracy"])


def needs_signal(main: LoadedEvaluation) -> Fact:
    """Fact 2: with neutral words, audio and vision from other utterances reduce the model to chance."""
    fact = Fact(
        f"On {SUBSET} the model answers from audio and vision: shuffled, it falls to chance",
        f"with every modality but text taken from other utterances, the lower end of the accuracy's interval is not above "
        f"chance (the share of the subset's most frequent class), and the drop from “{AS_IS}” is positive with "
        f"p < {SIGNIFICANT} by paired bootstrap.",
    )
    task, condition = main_class_task(main), shuffled_condition(main)
    if task is None:
        fact.why = "the evaluation has no classification task"
        return fact
    if condition is None:
        fact.why = "not evaluated: run `llm-mer evaluate` with --conditions shuffle:… of every modality but text"
        return fact
    intact = subset_accuracy(main, task, AS_IS, f"{task.name} accuracy, {AS_IS}")
    shuffled = subset_accuracy(main, task, condition, f"{task.name} accuracy, {condition}")
    if intact is None or shuffled is None or shuffled.interval is None:
        fact.why = f"the data have no utterances tagged {SUBSET}"
        return fact
    answers_by_condition = [main.known(name, task.name, subset=SUBSET) for name in (AS_IS, condition)]
    truth, first, second, clusters = pair_answers(
        answers_by_condition[0], answers_by_condition[1], f"{AS_IS} and {condition}"
    )
    chance = majority_class_share(truth)
    shuffled.against, shuffled.holds = f"chance {chance:.3f}", shuffled.interval[0] <= chance
    difference, interval, p = paired_difference(
        task, "accuracy", truth, first, second, main.evaluation.resamples, main.evaluation.seed, clusters
    )
    drop = FactLine("drop", len(truth), difference, interval, p=p, holds=difference > 0 and p.is_significant)
    fact.lines = [intact, shuffled, drop]
    for language in main.languages if len(main.languages) > 1 else []:
        row = main.evaluation.find(condition, task.name, language, SUBSET)
        if row is not None and "accuracy" in row.intervals:
            own = majority_class_share([p.truth for p in main.known(condition, task.name, language, SUBSET)])
            chance_note = f"chance {own:.3f} (shown only)"
            fact.lines.append(
                FactLine(
                    f"  {language}, {condition}", row.n, row.metrics["accuracy"], row.intervals["accuracy"], chance_note
                )
            )
    return fact.judge()


def beats_text_only(main: LoadedEvaluation, text_only: LoadedEvaluation | None) -> Fact:
    """Fact 3: with neutral words, the system is better than one trained on text alone.

    Raises:
        UserError: the second evaluation's model reads more than text, or its utterances differ.
    """
    fact = Fact(
        f"On {SUBSET} the model is better than a text-only one",
        "the lower end of the 95 % interval of the paired difference of accuracies (main − text-only) is above 0.",
    )
    task = main_class_task(main)
    if text_only is None:
        fact.why = "no text-only evaluation was given (--text_only)"
        return fact
    read = text_only.evaluation.checkpoint.get("modalities", [])
    if list(read) != ["text"]:
        raise UserError(f"{text_only.folder}: its checkpoint reads {', '.join(read) or 'nothing known'}, not text alone")
    if task is None or task.name not in {t.name for t in text_only.tasks}:
        fact.why = "the two evaluations share no classification task"
        return fact
    one = subset_accuracy(main, task, AS_IS, f"{task.name} accuracy, {main.evaluation.name}")
    other = subset_accuracy(text_only, task, AS_IS, f"{task.name} accuracy, {text_only.evaluation.name} (text only)")
    if one is None or other is None:
        fact.why = f"the data have no utterances tagged {SUBSET}"
        return fact
    answers = [loaded.known(AS_IS, task.name, subset=SUBSET) for loaded in (main, text_only)]
    truth, first, second, clusters = pair_answers(answers[0], answers[1], f"{main.folder} and {text_only.folder}")
    difference, interval, p = paired_difference(
        task, "accuracy", truth, first, second, main.evaluation.resamples, main.evaluation.seed, clusters
    )
    fact.lines = [one, other, FactLine("difference", len(truth), difference, interval, p=p, holds=interval[0] > 0)]
    return fact.judge()


def quickstart_facts(main: LoadedEvaluation, text_only: LoadedEvaluation | None) -> list[Fact]:
    """All three facts."""
    return [beats_baselines(main), needs_signal(main), beats_text_only(main, text_only)]


def facts_text(facts: Sequence[Fact]) -> str:
    """The facts as numbered text."""
    return "\n".join(f"{number}. {fact.text()}" for number, fact in enumerate(facts, 1))
