"""``llm-mer audit``: free-text answers of any other system, scored as this program scores its own generations.

A text is an answer only where the task reads it as one (:meth:`~llm_mer.prompting.tasks.Task.parse`); any other is counted
as unparseable and is wrong, never mapped to a class.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.errors import UserError
from llm_mer.evaluation.options import AuditConfig
from llm_mer.evaluation.rows import Evaluation, save_evaluation, score_rows, table
from llm_mer.evaluation.subsets import check_groupings
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.storage.json_lines import read_json_lines
from llm_mer.storage.locks import lock_output
from llm_mer.storage.quoting import quote
from llm_mer.storage.watched_folder import watch_folder

AUDITED = "free text"
SHOWN = 5
"""Unparseable texts that are shown, the most frequent ones."""


def read_answers(path: Path) -> dict[str, str]:
    """``{id: text}`` of a JSONL file of objects with ``id`` and ``text``; other fields are not read.

    Raises:
        UserError: no such file, a line that is no such object, or ids that occur more than once: how many, and the first.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a JSONL file of objects with id and text")
    answers: dict[str, str] = {}
    twice: list[str] = []
    for where, entry in read_json_lines(path):
        for name in ("id", "text"):
            if not isinstance(entry.get(name), str):
                raise UserError(f"{where}: {name} is {quote(entry.get(name))}; it must be a text")
        name = unicodedata.normalize("NFC", entry["id"])  # as ids of utterances are
        if name in answers:
            twice.append(f"{name!r} again in {where}")
        answers[name] = entry["text"]
    if twice:
        raise UserError(f"{path}: {_count(len(twice), 'line')} with an id that stands there before, the first {twice[0]}")
    if not answers:
        raise UserError(f"{path}: it is empty")
    return answers


def check_ids(answers: Mapping[str, str], asked: Sequence[str], known: Iterable[str], path: Path, place: str) -> None:
    """Every utterance with a label must be answered once, and no other.

    Raises:
        UserError: ids that are missing or unknown: how many, and the first.
    """
    held = set(known)
    unknown = [name for name in answers if name not in held]
    if unknown:
        raise UserError(f"{path}: {_count(len(unknown), 'id')} that {place} does not hold, the first {unknown[0]!r}")
    missing = [name for name in asked if name not in answers]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(asked)} utterances of {place} have no answer, the first {missing[0]!r}; a "
            "score over those that are answered would be of another set"
        )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def predictions_of(answers: Mapping[str, str], dataset: MerDataset, task: Task, style: str) -> list[Prediction]:
    """The texts as free generations of each question."""
    found = []
    for question in dataset.questions:
        utterance = dataset.utterance(question.row)
        language = dataset.language(question.row)
        text = answers[utterance.id]
        read: Any = task.parse(text, language, style)
        if read is not None and task.kind == "classification":
            read = task.label_names[int(read)]
        found.append(
            Prediction(
                id=utterance.id,
                task=task.name,
                language=language,
                value="" if read is None else read,
                truth=question.truth,
                generated=text,
                parsed=read,
                tags=utterance.tags,
                dialogue_id=utterance.dialogue_id,
                turn=utterance.turn,
                speaker=utterance.speaker,
            )
        )
    return found


def answer_style(config: AuditConfig, task: Task) -> str:
    """``word``, ``index`` or ``number``. Raises :class:`UserError` for classes answered with a number."""
    if task.kind == "regression":
        return "number"
    return config.style


def audit(config: AuditConfig) -> tuple[Evaluation, list[Prediction]]:
    """Score a file of answers to one task.

    Raises:
        UserError: a file, split, task or grouping that does not fit, or ids that are missing, unknown or there twice.
    """
    check_groupings(config.by)
    path, task = Path(config.predictions), get_task(config.task)
    answers = read_answers(path)
    splits, _, fingerprint = read_utterances(config.data)
    utterances = find_split(splits, config.split, config.data)
    place = f"{config.data}, split {config.split!r},"
    dataset = MerDataset(utterances, [task], languages=config.languages)
    if not len(dataset):
        raise UserError(f"{place} has no utterance with a label for {task.name}; known labels: {dataset.label_names()}")
    asked = [dataset.identifier(question.row) for question in dataset.questions]
    everyone = [dataset.identifier(row) for row in range(len(utterances))]
    check_ids(answers, asked, everyone, path, place.rstrip(","))
    predictions = predictions_of(answers, dataset, task, answer_style(config, task))
    evaluation = Evaluation(
        name=path.stem,
        checkpoint={"adapter": "none", "modalities": [], "backbone": "another system"},
        data=f"{Path(config.data).name} ({fingerprint[:12]})",
        split=config.split,
        seed=config.seed,
        resamples=config.resamples,
        checkpoint_sha256=file_sha256(path),
    )
    shared: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed, "by": config.by}
    evaluation.rows = score_rows(AUDITED, predictions, task, use_parsed=True, **shared)
    return evaluation, predictions


def run(config: AuditConfig) -> str:
    """The table and the most frequent unparseable texts; with ``--output`` files as of ``llm-mer evaluate``."""
    evaluation, predictions = audit(config)
    lines = [table(evaluation)]
    texts = Counter(p.generated or "" for p in predictions if p.parsed is None)
    if texts:
        shown = ", ".join(f"{quote(text)} ({number})" for text, number in texts.most_common(SHOWN))
        lines.append(f"unparseable, counted as wrong: {sum(texts.values())} of {len(predictions)}, e.g. {shown}")
    if config.output:
        folder = Path(config.output)
        with lock_output(folder), watch_folder(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_evaluation(folder, evaluation, {AUDITED: predictions})
        lines.append(f"written to {folder}")
    return "\n".join(lines)
