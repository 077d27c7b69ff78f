"""Prompt templates: one YAML file for each style, language and kind of task, checked when read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import ANSWER_STYLES, Task
from llm_mer.resources.files import resource
from llm_mer.storage.yaml_text import read_yaml

PLACEHOLDERS: tuple[str, ...] = (
    "transcript",
    "labels",
    "indexed_labels",
    "low",
    "high",
    "context",
    "speaker",
    "question",
    "task",
)


@dataclass(frozen=True)
class PromptTemplate:
    """One template: a language, a kind of task, a style of answer.

    Attributes:
        name: of the file. language: ``en`` or ``zh``. kind: ``classification`` or ``regression``.
        answer: ``word`` or ``index`` for classes, ``number`` for scores.
        prefix, suffix: what stands before and after the pseudo tokens. task: the question, ending where the answer begins.
        system: the system message of a chat backbone.
        context_turns: earlier turns shown at ``{context}``. context_line: how one is written.
        missing_transcript, unknown_speaker: words that stand in.
        tasks: names of the tasks it is for; empty for every task of its kind.

    Placeholders in ``system``, ``prefix``, ``suffix`` and ``task``: ``{transcript}``, ``{labels}`` (words, in label
    order), ``{indexed_labels}`` (``0 = neutral, …``), ``{low}``, ``{high}`` (score range), ``{context}``, ``{speaker}``,
    ``{question}`` (the task's own, in the template's language), ``{task}`` (its name).
    """

    name: str
    language: str
    kind: str
    answer: str
    task: str
    prefix: str = ""
    suffix: str = ""
    system: str = ""
    context_turns: int = 0
    context_line: str = "{speaker}: {text}\n"
    missing_transcript: str = ""
    unknown_speaker: str = "?"
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"prompt {self.name!r}"
        if self.language not in LANGUAGES:
            raise UserError(f"{where}: language is {self.language!r}; it must be one of {', '.join(LANGUAGES)}")
        if self.kind not in ("classification", "regression"):
            raise UserError(f"{where}: kind is {self.kind!r}; it must be classification or regression")
        if self.answer not in ANSWER_STYLES:
            raise UserError(f"{where}: answer is {self.answer!r}; it must be one of {', '.join(ANSWER_STYLES)}")
        if (self.answer == "number") != (self.kind == "regression"):
            raise UserError(f"{where}: a {self.kind} prompt cannot ask for {self.answer!r} as its answer")
        if self.context_turns < 0:
            raise UserError(f"{where}: context_turns is {self.context_turns}; it must be at least 0")
        used = set()
        for part in ("system", "prefix", "suffix", "task"):
            used |= _placeholders(getattr(self, part), PLACEHOLDERS, f"{where}, {part}")
        _placeholders(self.context_line, ("speaker", "text"), f"{where}, context_line")
        for part in ("missing_transcript", "unknown_speaker"):
            if misplaced := [name for name in PLACEHOLDERS if f"{{{name}}}" in getattr(self, part)]:
                raise UserError(f"{where}, {part}: {{{misplaced[0]}}} would stand there as it is; it holds words alone")
        if self.answer == "index" and "indexed_labels" not in used:
            raise UserError(f"{where}: an index answer needs {{indexed_labels}}, or nobody knows what the numbers mean")
        if ("context" in used) != (self.context_turns > 0):
            raise UserError(f"{where}: {{context}} and context_turns above 0 belong together")
        if not self.task.strip():
            raise UserError(f"{where}: task is empty; it holds the question")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        entry = dataclasses.asdict(self)
        tasks = entry.pop("tasks")
        return {**entry, "tasks": list(tasks)} if tasks else entry

    def can_ask(self, task: Task) -> bool:
        """Whether it is for a task: of its kind, among its ``tasks``, and with the question it shows."""
        asks = not self.shows_question or self.language in task.question
        return self.kind == task.kind and (not self.tasks or task.name in self.tasks) and asks

    @cached_property
    def shows_question(self) -> bool:
        """Whether ``{question}`` stands in it."""
        parts = (self.system, self.prefix, self.suffix, self.task)
        return any("question" in _placeholders(part, PLACEHOLDERS, self.name) for part in parts)

    @classmethod
    def from_dict(cls, entry: dict[str, Any], where: str = "checkpoint") -> PromptTemplate:
        """Check and build. Raises :class:`UserError` naming unknown or missing keys."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise UserError(f"{where}: unknown keys {unknown}; a prompt knows {sorted(known)}")
        missing = sorted({"name", "language", "kind", "answer", "task"} - set(entry))
        if missing:
            raise UserError(f"{where}: missing keys {missing}")
        entry = dict(entry)
        tasks = entry.pop("tasks", [])
        if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
            raise UserError(f"{where}: tasks is {tasks!r}; it must be a list of names of tasks")
        for key, value in entry.items():
            wanted = int if key == "context_turns" else str
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise UserError(f"{where}: {key} is {value!r}; it must be {'a whole number' if wanted is int else 'text'}")
        try:
            return cls(**entry, tasks=tuple(tasks))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _placeholders(text: str, allowed: Sequence[str], where: str) -> set[str]:
    try:
        fields = [field for field in Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise UserError(f"{where}: {error}; write {{{{ and }}}} for literal braces") from None
    names = {name for _, name, _, _ in fields if name is not None}
    formatted = sorted(str(name) for _, name, spec, conversion in fields if spec or conversion)
    if formatted:
        raise UserError(f"{where}: placeholders {formatted} carry a format; they are filled in as they are")
    unknown = sorted(names - set(allowed))
    if unknown:
        raise UserError(f"{where}: unknown placeholders {unknown}; known are {', '.join(allowed)}")
    return names


def prompt_folder() -> Path:
    """The shipped ``prompts/``, whatever the working directory holds."""
    return resource("prompts")


def read_prompt(path: Path) -> PromptTemplate:
    """One YAML file, checked. The file's name is the prompt's unless it names itself."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a prompt file is a mapping of keys to values")
    return PromptTemplate.from_dict({"name": path.stem, **content}, str(path))


def load_prompts(sources: str | Sequence[str]) -> list[PromptTemplate]:
    """Templates by style, by file or by folder.

    A style (``short`` reads every shipped ``prompts/short_*.yaml``) always means the shipped one; a folder of one's own that
    has a style's name is named by path, ``./short``. A file that is not there is looked for among the shipped ones.

    Raises:
        UserError: a source that is none of these, or a template that does not check.
    """
    found: list[PromptTemplate] = []
    for source in [sources] if isinstance(sources, str) else sources:
        path = Path(source)
        if source in styles():
            files = sorted(prompt_folder().glob(f"{source}_*.yaml"))
        elif path.suffix in (".yaml", ".yml"):
            shipped = prompt_folder() / path.name
            if not path.is_file() and path.parent in (Path(), Path("prompts")) and shipped.is_file():
                path = shipped
            if not path.is_file():
                raise UserError(f"prompts: no such file {source!r}")
            files = [path]
        else:
            files = sorted(path.glob("*.yaml")) if path.is_dir() else []
        if not files:
            raise UserError(f"prompts: {source!r} is no file, folder or style; styles are {', '.join(styles())}")
        found += [read_prompt(file) for file in files]
    return found


def select_prompt(templates: Sequence[PromptTemplate], task: Task, language: str) -> PromptTemplate:
    """The first template of a language that names the task among its ``tasks``, else the first for all of the task's kind.

    Raises:
        UserError: there is none; it names what is loaded, or the question that the task lacks.
    """
    spoken = [template for template in templates if template.language == language]
    fitting = [template for template in spoken if template.can_ask(task)]
    if fitting:
        return next((template for template in fitting if task.name in template.tasks), fitting[0])
    if unasked := [t for t in spoken if t.kind == task.kind and t.shows_question and (not t.tasks or task.name in t.tasks)]:
        raise UserError(
            f"task {task.name!r} has no question in language {language!r}, which prompt {unasked[0].name!r} asks; "
            f"write question: {{{language}: …}} in its file"
        )
    offered = (
        ", ".join(f"{t.name} ({t.language}, {t.kind}{''.join(f', {n}' for n in t.tasks)})" for t in templates) or "none"
    )
    raise UserError(f"no prompt for {task.kind} task {task.name!r} in language {language!r}; loaded are: {offered}")


def styles() -> list[str]:
    """Names of the shipped styles."""
    return sorted({re.split(r"_(?:en|zh)_", f.stem)[0] for f in prompt_folder().glob("*.yaml")})
