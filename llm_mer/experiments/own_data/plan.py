"""The plan of ``llm-mer train --manifest``: what was read in the table, and all that will be done with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mer.data.dataset import MerDataset
from llm_mer.data.feature_settings import NGRAMS, NONE, FeatureSettings
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.column_names import ColumnNames
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.defaults import BACKBONE, training_defaults
from llm_mer.experiments.own_data.options import OwnDataOptions
from llm_mer.experiments.own_data.rows import name_columns, read_rows
from llm_mer.experiments.own_data.splitting import Splits, find_splits
from llm_mer.experiments.own_data.table import Table, find_fields, read_table
from llm_mer.experiments.own_data.targets import Targets, find_targets
from llm_mer.experiments.own_data.values import file_name
from llm_mer.prompting.templates import load_prompts
from llm_mer.storage.fingerprints import json_sha256
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import check_prompts

FIXED = ("data", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "train_split", "eval_split")
"""Options of the training that follow from the plan."""


@dataclass(frozen=True)
class Folders:
    """Where everything of one plan is written."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.jsonl"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def scores(self) -> Path:
        return self.root / "scores.txt"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


@dataclass(frozen=True)
class Plan:
    """All that follows from the table and the options, checked.

    Attributes:
        fields: ``{column: field}``. utterances: in the order of the rows, with labels and splits.
        training: the options of the training by name; ``config`` the same, validated.
        questions: asked of the training split.
    """

    options: OwnDataOptions
    table: Table
    fields: dict[str, str]
    names: ColumnNames
    utterances: list[Utterance]
    targets: Targets
    splits: Splits
    features: FeatureSettings
    training: dict[str, Any]
    config: RunConfig
    questions: int
    folders: Folders

    @property
    def steps(self) -> int:
        """Steps of the optimiser that the options amount to."""
        training = self.config.training
        if training.max_steps > 0:
            return int(training.max_steps)
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return math.ceil(math.ceil(self.questions / batch) * training.num_train_epochs)

    def inputs(self) -> dict[str, Any]:
        """Everything that the result follows from, by name: another value makes another plan."""
        files = sorted({f for u in self.utterances for f in (u.audio, u.vision) if f is not None})
        stated = [(file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files]
        return {
            "the table": self.table.sha256,
            "the files of its clips": json_sha256(stated),
            "the columns": self.names.to_dict(),
            "the tasks": {target.task.name: target.task.to_dict() for target in self.targets.learnt},
            "the splits": json_sha256(list(self.splits.names)),
            **{f"--{name}": value for name, value in self.features.to_dict().items()},
            "--on_bad_media": self.options.on_bad_media,
            **{f"--{name}": value for name, value in self.training.items() if name not in (*FIXED, "tasks")},
        }


def make_plan(options: OwnDataOptions, given: Mapping[str, Any]) -> Plan:
    """Read the table and decide everything. Nothing is written.

    Args:
        given: the options of the training that a YAML file or the command line named.

    Raises:
        UserError: a table that cannot be used as it stands, options that do not fit it or one another.
    """
    _check_options(options, given)
    table = read_table(Path(options.manifest))
    fields = find_fields(table, options.columns)
    unlabelled = name_columns(table, fields, options.language)
    languages = sorted({utterance.language for utterance in read_rows(table, unlabelled)})
    if (kept := given.get("languages")) is not None:
        languages = [language for language in languages if language in kept]
    targets = find_targets(table, fields, options, languages)
    columns = list(dict.fromkeys(target.column for target in targets.learnt))
    names = _with_targets(unlabelled, columns, targets)
    read = read_rows(table, names, [target.task.target for target in targets.learnt])
    has_split = [any(fields.get(column) == "split" for column in row) for _, row in table.rows]
    main = next((t.task for t in targets.learnt if t.task.kind == "classification"), targets.learnt[0].task)
    splits = find_splits(read, has_split, main, options.split_by, options.split_seed, str(table.path))
    utterances = [dataclasses.replace(u, split=split) for u, split in zip(read, splits.names, strict=True)]
    folders = Folders(Path(options.output_dir or f"runs/{table.path.stem}"))
    backbone = str(given.get("backbone", BACKBONE))
    _check_head(backbone, targets)
    questions = sum(
        utterance.split == "train" and _is_asked(target.task, utterance)
        for utterance in utterances
        for target in targets.learnt
    )
    training = {**training_defaults(backbone, questions, "valid" in splits.names), **given}
    training |= {
        "data": str(folders.features),
        "output_dir": str(folders.model),
        "tasks": task_paths(targets, folders.tasks),
    }
    features = _features(options, utterances, backbone)
    config = RunConfig.build(training)
    if backbone != "none":  # here, and not when features are extracted
        tasks = [target.task for target in targets.learnt]
        train = MerDataset([u for u in utterances if u.split == "train"], tasks, languages=config.data.languages)
        check_prompts(train, load_prompts(config.data.prompts))
    return Plan(
        options, table, fields, names, utterances, targets, splits, features, training, config, questions, folders
    )  # fmt: skip


def task_paths(targets: Targets, folder: Path) -> list[str]:
    """The file of each task, no two alike."""
    stems: dict[str, None] = {}
    for target in targets.learnt:
        stem = file_name(target.task.name)
        stems[stem if stem not in stems else f"{stem}_{len(stems)}"] = None
    return [str(folder / f"{stem}.yaml") for stem in stems]


def _check_options(options: OwnDataOptions, given: Mapping[str, Any]) -> None:
    if misplaced := [name for name in FIXED if name in given]:
        raise UserError(f"{misplaced[0]}: follows from --manifest; leave it out")
    if "seeds" in given:
        raise UserError(
            "seeds: --manifest trains one model; then `finetune.py --config OUTPUT/config.yaml --seeds …` trains others"
        )
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: it must be at least 1")
    if options.write_tasks and not options.dry_run:
        raise UserError(
            "--write_tasks writes the task files of a --dry_run; without it they are written into the output folder"
        )
    if not 0 <= options.split_seed < 2**32:
        raise UserError(f"--split_seed {options.split_seed}: it must be a whole number from 0 to {2**32 - 1}")


def _with_targets(names: ColumnNames, columns: Sequence[str], targets: Targets) -> ColumnNames:
    """The same with the columns that are targets read; a column of white space around its name is its task's target."""
    renamed = {t.column: t.task.target for t in targets.learnt if t.column != t.task.target}
    kept = tuple(column for column in names.ignored if column not in columns)
    return dataclasses.replace(names, renamed={**names.renamed, **renamed}, ignored=kept)


def _features(options: OwnDataOptions, utterances: Sequence[Utterance], backbone: str) -> FeatureSettings:
    """The settings, of modalities that the clips have; an adapter alone reads hashed n-grams of the words."""
    settings = options.settings
    has_text = any(utterance.text for utterance in utterances)
    return dataclasses.replace(
        settings,
        audio=settings.audio if any(utterance.audio for utterance in utterances) else NONE,
        vision=settings.vision if any(utterance.vision for utterance in utterances) else NONE,
        text=NONE if not has_text else NGRAMS if backbone == "none" and settings.text == NONE else settings.text,
    )


def _check_head(backbone: str, targets: Targets) -> None:
    """Raises :class:`UserError` for more tasks than an adapter's own head answers: one of each kind."""
    for kind, called in (("classification", "labels"), ("regression", "scores")):
        names = [target.column for target in targets.learnt if target.task.kind == kind]
        if backbone == "none" and len(names) > 1:
            raise UserError(
                f"backbone: none answers by an adapter's own head, one column of {called} and not {', '.join(names)}; say "
                f"--targets with one of them, or name a backbone"
            )


def _is_asked(task: Any, utterance: Utterance) -> bool:
    truth = utterance.labels.get(task.target)
    return truth is not None and not task.ignores(truth)
