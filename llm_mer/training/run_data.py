"""The data of a run: splits, tasks, feature statistics, checked against the prompts before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.data.statistics import FeatureStatistics, RunningStatistics
from llm_mer.data.store import FEATURE_COLUMNS, UtteranceTable, check_utterance
from llm_mer.errors import UserError
from llm_mer.prompting.rendering import HistoryTurn, check_prompts_differ, render
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, select_prompt

if TYPE_CHECKING:
    from llm_mer.training.options import DataArguments


@dataclass
class RunData:
    """What was read and checked."""

    train: MerDataset
    evaluation: MerDataset | None
    tasks: list[Task]
    feature_sizes: dict[str, int]
    statistics: dict[str, FeatureStatistics]
    fingerprint: str
    description: dict[str, Any]


def prepare_data(arguments: DataArguments, with_prompts: bool = True) -> RunData:
    """Read the data and check that data, tasks, prompts and labels fit one another.

    Args:
        with_prompts: whether questions will be asked in words, so that every training question needs a template.

    Raises:
        UserError: naming the file, field or option that does not fit.
    """
    tasks = [get_task(name) for name in arguments.tasks]
    if len({task.name for task in tasks}) != len(tasks):
        raise UserError(f"tasks: {arguments.tasks} names a task twice")
    splits, description, fingerprint = read_utterances(arguments.data)

    def dataset(split: str, limit: int | None) -> MerDataset:
        return MerDataset(
            find_split(splits, split, arguments.data),
            tasks,
            languages=arguments.languages,
            limit=limit,
            context_window=arguments.context_window,
            bidirectional=arguments.bidirectional_context,
        )

    train = dataset(arguments.train_split, arguments.limit_train)
    for task in tasks:
        if not train.truths(task):
            known = train.label_names()
            raise UserError(
                f"{arguments.data}: no training utterance has a label {task.target!r} for task {task.name!r}; "
                f"labels in the data: {', '.join(known) or 'none'}"
            )
    evaluation = dataset(arguments.eval_split, arguments.limit_eval) if arguments.eval_split in splits else None
    if with_prompts:
        check_prompts(train, load_prompts(arguments.prompts))
    sizes, statistics = measure_features(train)
    return RunData(train, evaluation, tasks, sizes, statistics, fingerprint, description)


def check_prompts(dataset: MerDataset, templates: Sequence[PromptTemplate]) -> None:
    """Every task and language of the questions needs a template that can be filled in, and words to answer with.

    Raises:
        UserError: naming the task and language without one, the placeholder that means nothing there, or two tasks of one
            prompt.
    """
    for task in dataset.tasks:
        for language in sorted({dataset.language(q.row) for q in dataset.questions if q.task is task}):
            template = select_prompt(templates, task, language)
            render(template, task, "…", [HistoryTurn("A", "…")], "A")
            task.answers(language, template.answer)
    for language in sorted({dataset._language[q.row] for q in dataset.questions}):
        asked = {q.task.name for q in dataset.questions if dataset._language[q.row] == language}
        check_prompts_differ(templates, [task for task in dataset.tasks if task.name in asked], language)


def measure_features(train: MerDataset) -> tuple[dict[str, int], dict[str, FeatureStatistics]]:
    """Feature sizes, and statistics over the training rows only (read from a store's description when it is whole)."""
    whole = len(train.rows) == len(train.utterances)
    if isinstance(train.utterances, UtteranceTable) and whole and train.utterances.split == "train":
        return dict(train.utterances.info.feature_sizes), dict(train.utterances.info.statistics)
    sizes: dict[str, int] = {}
    running: dict[str, RunningStatistics] = {}
    for row in train.rows:
        utterance = train.utterance(row)
        check_utterance(utterance, sizes)
        for modality, column in FEATURE_COLUMNS.items():
            features = getattr(utterance, column)
            if features is not None:
                running.setdefault(modality, RunningStatistics()).update(features)
    return sizes, {m: result for m, r in running.items() if (result := r.result()) is not None}
