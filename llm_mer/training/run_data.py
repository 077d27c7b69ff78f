"""The data of a run: splits, tasks, feature statistics, checked against the prompts before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_mer.data.dataset import MerDataset
from llm_mer.data.missing_values import check_transcript
from llm_mer.data.normalisation import SPEAKER, UTTERANCE, parse_normalisation
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.data.speaker_effects import SpeakerEffects, collect_means
from llm_mer.data.statistics import FeatureStatistics, RunningStatistics
from llm_mer.data.store import FEATURE_COLUMNS, UtteranceTable, check_utterance
from llm_mer.data.training_range import TrainingRange, fit_training_ranges
from llm_mer.errors import UserError
from llm_mer.prompting.rendering import HistoryTurn, check_prompts_differ, render
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, select_prompt
from llm_mer.prompting.text_forms import find_lookalikes

if TYPE_CHECKING:
    from llm_mer.training.options import DataArguments

logger = logging.getLogger(__name__)


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
    normalisation: dict[str, str] = field(default_factory=dict)
    """``{modality: kind}`` where it is not global."""
    speaker_effects: dict[str, SpeakerEffects] = field(default_factory=dict)
    training_ranges: dict[str, TrainingRange] = field(default_factory=dict)


def prepare_data(arguments: DataArguments, with_prompts: bool = True, use_votes: bool = False) -> RunData:
    """Read the data and check that data, tasks, prompts and labels fit one another.

    Args:
        with_prompts: whether questions will be asked in words, so that every training question needs a template.
        use_votes: whether the distribution of annotators' votes is learnt, not their majority.

    Raises:
        UserError: naming the file, field or option that does not fit.
    """
    tasks = [get_task(name) for name in arguments.tasks]
    if len({task.name for task in tasks}) != len(tasks):
        raise UserError(f"tasks: {arguments.tasks} names a task twice")
    splits, description, fingerprint = read_utterances(arguments.data, arguments.folds, arguments.fold)

    def dataset(split: str, limit: int | None) -> MerDataset:
        return MerDataset(
            find_split(splits, split, arguments.data),
            tasks,
            languages=arguments.languages,
            limit=limit,
            use_votes=use_votes,
            context_window=arguments.context_window,
            bidirectional=arguments.bidirectional_context,
        )

    train = dataset(arguments.train_split, arguments.limit_train)
    if not train.rows:
        raise UserError(
            f"{arguments.data}: split {arguments.train_split!r} has no utterance in {', '.join(arguments.languages or ())}; "
            f"its languages are {', '.join(sorted({train.language(row) for row in range(len(train.utterances))}))}"
        )
    for task in tasks:
        if not train.truths(task):
            known = train.label_names()
            raise UserError(
                f"{arguments.data}: no training utterance has a label {task.target!r} for task {task.name!r}; "
                f"labels in the data: {', '.join(known) or 'none'}"
            )
    evaluation = dataset(arguments.eval_split, arguments.limit_eval) if arguments.eval_split in splits else None
    check_texts([train] if evaluation is None else [train, evaluation])
    report_data_problems(train, evaluation, arguments)
    if with_prompts:
        check_prompts(train, load_prompts(arguments.prompts))
    normalisation = parse_normalisation(arguments.normalisation)
    effects = fit_speaker_effects(train, [m for m, kind in normalisation.items() if kind == SPEAKER], arguments.data)
    if effects:
        for part in (train, evaluation):
            if part is not None:
                part.know_speakers(effects)
    sizes, statistics = measure_features(train)
    # Means over time are all zero where each utterance is normalised by its own steps.
    ranges = fit_training_ranges(train, evaluation, [m for m in sizes if normalisation.get(m) != UTTERANCE])
    return RunData(train, evaluation, tasks, sizes, statistics, fingerprint, description, normalisation, effects, ranges)


def report_data_problems(train: MerDataset, evaluation: MerDataset | None, arguments: DataArguments) -> None:
    """Say what makes scores of the evaluation split mean less than they seem to, and what cannot be learnt or chosen by."""
    for task in train.tasks:
        truths = set(train.truths(task))
        if len(truths) == 1:
            logger.warning("task %r: every training question has the answer %r: nothing to tell apart", task.name, *truths)
        if evaluation is not None and evaluation.questions and not evaluation.truths(task):
            logger.warning("split %r has no label of task %r: it is not evaluated", arguments.eval_split, task.name)
    if evaluation is None:
        return
    if arguments.eval_split == arguments.train_split:
        logger.warning("eval_split is train_split, %r: its scores are of what was trained on", arguments.train_split)
        return
    media = sorted(train.media() & evaluation.media())
    dialogues = [repr(name) for name in sorted(train.dialogues() & evaluation.dialogues())]
    for what, shared, extent in (("dialogues", dialogues, "on in part"), ("media files", media, "on")):
        if shared:
            logger.warning(
                "%d %s are in %r and in %r, e.g. %s: scores there are of what was trained %s; llm-mer validate lists them",
                len(shared),
                what,
                arguments.train_split,
                arguments.eval_split,
                shared[0],
                extent,
            )


def check_texts(datasets: Sequence[MerDataset]) -> None:
    """Transcripts that can be seen, and names of which no two look alike: ``llm-mer validate`` shows every one.

    Raises:
        UserError: a transcript of white space or invisible characters; two ids, dialogues or speakers that differ in width,
            Unicode form or invisible characters only. In letter case only they get a warning: ids of videos differ so.
    """
    found = [transcript for dataset in datasets for transcript in dataset.transcripts()]
    for identifier, _, text in found:
        check_transcript(text, f"utterance {identifier!r}")
    names = {
        "ids": [identifier for identifier, _, _ in found],
        "dialogues": sorted(set().union(*(dataset.dialogues() for dataset in datasets))),
        "speakers": sorted(set().union(*(dataset.speakers() for dataset in datasets))),
    }
    for kind, given in names.items():
        if (pair := find_lookalikes(dict.fromkeys(given))) is not None:
            raise UserError(
                f"{kind} {pair[0]!r} and {pair[1]!r} look alike and are not the same text; write them in one Unicode form "
                "(NFC) and width, without invisible characters"
            )
        if (pair := find_lookalikes(dict.fromkeys(given), fold_case=True)) is not None:
            logger.warning("%s %r and %r differ in letter case only; they count as two", kind, *pair)


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
        task_names = {q.task.name for q in dataset.questions if dataset._language[q.row] == language}
        check_prompts_differ(templates, [task for task in dataset.tasks if task.name in task_names], language)


def fit_speaker_effects(train: MerDataset, modalities: Sequence[str], data: str) -> dict[str, SpeakerEffects]:
    """How much speakers differ in these modalities, over the training rows.

    Raises:
        UserError: too few speakers or utterances to tell.
    """
    if not modalities:
        return {}  # without reading every utterance
    means = collect_means((train.utterance(row) for row in train.rows), modalities)
    return {m: SpeakerEffects.fit(means[m], f"normalisation: {m}=speaker: {data}, training split") for m in modalities}


def measure_features(train: MerDataset) -> tuple[dict[str, int], dict[str, FeatureStatistics]]:
    """Feature sizes, and statistics over the training rows only (read from a store's description when it is complete)."""
    all_rows = len(train.rows) == len(train.utterances) and train.speakers_known is None
    if isinstance(train.utterances, UtteranceTable) and all_rows and train.utterances.split == "train":
        # Sizes are of the whole store; what no training utterance has cannot be learnt to be read.
        info = train.utterances.info
        for modality in info.feature_sizes.keys() - info.statistics.keys():
            logger.warning("%s: no training utterance has it, so the model does not read it", modality)
        return {m: size for m, size in info.feature_sizes.items() if m in info.statistics}, dict(info.statistics)
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
