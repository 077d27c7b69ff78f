"""From the columns that are no fields to tasks: which are learnt, as what, and why the others are not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mer.errors import UserError
from llm_mer.experiments.own_data.options import OwnDataOptions
from llm_mer.experiments.own_data.table import IGNORE, Cell, Table, check_column, read_pairs
from llm_mer.experiments.own_data.values import Classes, Neither, Scores, as_classes, as_scores, classify_column
from llm_mer.prompting.tasks import Task, builtin_tasks, get_task
from llm_mer.storage.quoting import list_names, quote

METADATA = frozenset(
    "gender sex age session camera source date time duration annotator rater note notes comment comments url name title "
    "season episode index row number no".split()
)
"""Names of columns that describe a clip, and are learnt only where ``--targets`` names them."""
QUESTIONS: dict[str, dict[str, str]] = {
    "classification": {"en": "What is the {name}?", "zh": "{name}是什么？"},
    "regression": {"en": "How high is the {name}?", "zh": "{name}有多高？"},
}
"""Neutral questions, by kind of task and language, where a task file brings none."""


@dataclass(frozen=True)
class Target:
    """A column that is learnt.

    Attributes:
        cells: its values, in the order of the rows that have one. origin: where the task comes from.
        notes: what its owner should know of it.
    """

    column: str
    task: Task
    cells: tuple[Cell, ...]
    origin: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Targets:
    """The columns that are learnt, and ``{column: reason}`` of those that are not."""

    learnt: tuple[Target, ...]
    left_out: dict[str, str]


def find_targets(table: Table, fields: dict[str, str], options: OwnDataOptions, languages: Sequence[str]) -> Targets:
    """Every column that is no field, as a task or with the reason why it is none.

    Args:
        fields: ``{column: field}``. languages: those of the rows, in which tasks have words and questions.

    Raises:
        UserError: a column that can be read in two ways, one that was named and cannot be learnt, or no target at all.
    """
    ranges = {name: _read_range(name, text) for name, text in read_pairs(options.range, table, "range", "LOW:HIGH").items()}
    own_tasks = _own_tasks(options.tasks, table)
    for option in ("targets", "classes"):
        for name in getattr(options, option):
            check_column(name, table, option)
    if both := sorted(set(ranges) & set(options.classes)):
        raise UserError(f"--classes and --range both name {both[0]!r}: labels, or scores?")
    forced = {*ranges, *options.classes, *own_tasks, *options.targets}
    if misplaced := [name for name in forced if fields.get(name, IGNORE) != IGNORE]:
        raise UserError(
            f"column {misplaced[0]!r} is read as {fields[misplaced[0]]}, not as a target; --columns says otherwise"
        )
    learnt: list[Target] = []
    left_out: dict[str, str] = {}
    for column in table.columns:
        if column in fields and column not in forced:
            left_out |= {column: "--columns says so"} if fields[column] == IGNORE else {}
        elif column in own_tasks:
            learnt += [_with_own_task(task, table.cells(column), languages) for task in own_tasks[column]]
        elif options.targets and column not in forced:
            left_out[column] = "not among --targets"
        elif not column.strip():
            left_out[column] = "it has no name"
        elif column.strip().casefold() in METADATA and column not in forced:
            left_out[column] = f"its name says that it describes the clip; --targets {column} learns it"
        else:
            found = _read_column(
                column, table.cells(column), column in options.classes, column in ranges, ranges.get(column)
            )
            if isinstance(found, Neither):
                if column in forced:
                    raise UserError(
                        f"--targets {column}: it cannot be learnt: {found.reason}; --classes {column} takes it as labels"
                    )
                left_out[column] = found.reason
            else:
                learnt.append(_make_target(column, found, table.cells(column), languages))
    if not learnt:
        reasons = "; ".join(f"{column!r}: {reason}" for column, reason in left_out.items()) or "every column is a field"
        raise UserError(f"{table.path}: no column can be learnt ({reasons}); name one with --targets or --classes")
    return Targets(tuple(learnt), left_out)


def _read_column(
    column: str, cells: Sequence[Cell], is_classes: bool, is_scores: bool, bounds: tuple[float, float] | None
) -> Scores | Classes | Neither:
    if is_classes:
        return as_classes(column, cells)
    if is_scores:
        return as_scores(column, cells, bounds)
    known = builtin_tasks().get(column)
    if known is not None and known.kind == "classification" and all(_is_label(known, cell) for cell in cells):
        return as_classes(column, cells)  # also where they are so few that the rule would leave it open
    return classify_column(column, cells)


def _make_target(column: str, found: Scores | Classes, cells: Sequence[Cell], languages: Sequence[str]) -> Target:
    name = column.strip()
    known = builtin_tasks().get(name)
    if isinstance(found, Classes):
        if known is not None and known.kind == "classification" and all(_is_label(known, cell) for cell in cells):
            return Target(column, known, tuple(cells), "the built-in task of this name, which knows all its labels")
        entry: dict[str, Any] = {
            "kind": "classification",
            "labels": [{"name": label, **dict.fromkeys(languages, label)} for label in found.counts],
        }
        notes = [f"answers in {' and '.join(languages)} are these words; --tasks FILE gives others for each language"]
        notes += [
            f"label {label!r} stands in {n} rows: too few for three splits" for label, n in found.counts.items() if n < 3
        ]
        origin = "labels as they stand in the column"
    else:
        entry = {"kind": "regression", "range": [found.low, found.high], "decimals": found.decimals}
        origin = f"observed {found.observed[0]:g} to {found.observed[1]:g}"
        notes = [f"an answer outside {found.low:g} to {found.high:g} cannot be given; --range {column}=LOW:HIGH changes it"]
    same_kind = known is not None and known.kind == entry["kind"] and known.question
    entry["question"] = dict(known.question) if same_kind and known is not None else neutral_question(name, entry["kind"])
    entry["question"] = {language: text for language, text in entry["question"].items() if language in languages}
    task = Task.from_dict(name, entry, f"column {column!r}")
    return Target(column, task, tuple(cells), origin, tuple(notes))


def neutral_question(name: str, kind: str) -> dict[str, str]:
    """``What is the mood?``: a question in each language for a task that brings none."""
    shown = re.sub(r"[_\s]+", " ", name).strip()
    return {language: text.format(name=shown) for language, text in QUESTIONS[kind].items()}


def _own_tasks(names: Sequence[str], table: Table) -> dict[str, list[Task]]:
    """The tasks of ``--tasks`` by the column they are about."""
    found: dict[str, list[Task]] = {}
    for name in names:
        task = get_task(name)
        if task.target not in table.columns:
            raise UserError(
                f"--tasks {name}: its target is {task.target!r}, and {table.path} has no such column with values; it has "
                f"{list_names(table.columns)}"
            )
        found.setdefault(task.target, []).append(task)
    return found


def _with_own_task(task: Task, cells: Sequence[Cell], languages: Sequence[str]) -> Target:
    """A task of the user's, every value of its column checked against it, and asked in every language of the rows."""
    for cell in cells:
        if task.kind == "regression":
            task.score(cell.value, f"{cell.where}: column {task.target!r}")
        elif not task.ignores(cell.text):
            task.class_index(cell.text, f"{cell.where}: column {task.target!r}")
    for language in languages:
        if task.kind == "classification":
            task.words(language)
    unasked = [language for language in languages if language not in task.question]
    if not unasked:
        return Target(task.target, task, tuple(cells), "--tasks")
    neutral = {language: neutral_question(task.name, task.kind)[language] for language in unasked}
    asked = dataclasses.replace(task, question={**task.question, **neutral})
    note = f"its file has no question in {' and '.join(unasked)}, so this one is asked"
    return Target(task.target, asked, tuple(cells), "--tasks", (note,))


def _is_label(task: Task, cell: Cell) -> bool:
    try:
        task.class_index(cell.text)
    except UserError:
        return False
    return True


def _read_range(name: str, text: str) -> tuple[float, float]:
    low, separator, high = text.partition(":")
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = 0.0, 0.0
    if not separator or not -float("inf") < bounds[0] < bounds[1] < float("inf"):
        raise UserError(f"--range {name}={text}: {quote(text)} is no range; write LOW:HIGH, e.g. {name}=0:100")
    return bounds
