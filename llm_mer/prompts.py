"""Prompt templates: ``[E_prefix; T_pseudo; E_suffix; P_task]`` (arXiv 2601.07565) as YAML, checked when they are loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from llm_mer.data.schema import LANGUAGES
from llm_mer.errors import UserError
from llm_mer.tasks import ANSWER_STYLES, Task

PROMPT_FOLDER = "prompts"
PLACEHOLDERS: tuple[str, ...] = ("transcript", "labels", "indexed_labels", "low", "high", "context", "speaker")
SENTINEL = "\u2060pseudo\u2060tokens\u2060"
"""Stands for the pseudo tokens while a chat template is applied; word joiners keep it out of any user's text."""


@dataclass(frozen=True)
class HistoryTurn:
    """One earlier turn of the dialogue."""

    speaker: str | None
    text: str | None


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt's text before and after the pseudo tokens, and the system message that goes in front of it."""

    before: str
    after: str
    system: str = ""


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

    Placeholders in ``system``, ``prefix``, ``suffix`` and ``task``: ``{transcript}``, ``{labels}`` (words, in label
    order), ``{indexed_labels}`` (``0 = neutral, …``), ``{low}``, ``{high}`` (score range), ``{context}``, ``{speaker}``.
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
        if self.answer == "index" and "indexed_labels" not in used:
            raise UserError(f"{where}: an index answer needs {{indexed_labels}}, or nobody knows what the numbers mean")
        if ("context" in used) != (self.context_turns > 0):
            raise UserError(f"{where}: {{context}} and context_turns above 0 belong together")
        if not self.task.strip():
            raise UserError(f"{where}: task is empty; it holds the question")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the YAML file."""
        return dataclasses.asdict(self)

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
        for key, value in entry.items():
            wanted = int if key == "context_turns" else str
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise UserError(f"{where}: {key} is {value!r}; it must be {'a whole number' if wanted is int else 'text'}")
        try:
            return cls(**entry)
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
    """``prompts/`` of the working directory, else the one beside the package."""
    here = Path(PROMPT_FOLDER)
    return here if here.is_dir() else Path(__file__).resolve().parent.parent / PROMPT_FOLDER


def read_prompt(path: Path) -> PromptTemplate:
    """One YAML file, checked. The file's name is the prompt's unless it names itself."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a prompt file is a mapping of keys to values")
    return PromptTemplate.from_dict({"name": path.stem, **content}, str(path))


def load_prompts(sources: str | Sequence[str]) -> list[PromptTemplate]:
    """Templates by style (``short`` reads every ``prompts/short_*.yaml``), by file or by folder.

    Raises:
        UserError: a source that is none of these, or a template that does not check.
    """
    found: list[PromptTemplate] = []
    for source in [sources] if isinstance(sources, str) else sources:
        path = Path(source)
        if path.suffix in (".yaml", ".yml"):
            if not path.is_file() and (prompt_folder() / path.name).is_file():
                path = prompt_folder() / path.name
            if not path.is_file():
                raise UserError(f"prompts: no such file {source!r}")
            files = [path]
        elif path.is_dir():
            files = sorted(path.glob("*.yaml"))
        else:
            files = sorted(prompt_folder().glob(f"{source}_*.yaml"))
        if not files:
            styles = sorted({f.name.split("_")[0] for f in prompt_folder().glob("*.yaml")})
            raise UserError(f"prompts: {source!r} is no file, folder or style; styles are {', '.join(styles)}")
        found += [read_prompt(file) for file in files]
    return found


def select_prompt(templates: Sequence[PromptTemplate], task: Task, language: str) -> PromptTemplate:
    """The first template for a task's kind and a language. Raises :class:`UserError` naming what there is."""
    for template in templates:
        if template.language == language and template.kind == task.kind:
            return template
    offered = ", ".join(f"{t.name} ({t.language}, {t.kind})" for t in templates) or "none"
    raise UserError(f"no prompt for {task.kind} task {task.name!r} in language {language!r}; loaded are: {offered}")


def render(
    template: PromptTemplate,
    task: Task,
    text: str | None,
    history: Sequence[HistoryTurn] = (),
    speaker: str | None = None,
) -> RenderedPrompt:
    """Fill a template in. The user's text goes in as it is: braces in it are text, not placeholders."""
    if template.kind != task.kind:
        raise UserError(f"prompt {template.name!r} is for {template.kind}, task {task.name!r} is {task.kind}")
    values: dict[str, str] = {
        "transcript": text if text else template.missing_transcript,
        "speaker": speaker or template.unknown_speaker,
    }
    if task.kind == "classification":
        words = task.words(template.language)
        joiner = "、" if template.language == "zh" else ", "
        values["labels"] = joiner.join(words)
        values["indexed_labels"] = joiner.join(f"{i} = {word}" for i, word in enumerate(words))
    else:
        low, high = task.require_range()
        values["low"], values["high"] = task.format_score(low), task.format_score(high)
    turns = list(history)[-template.context_turns :] if template.context_turns else []
    values["context"] = "".join(
        template.context_line.format(
            speaker=turn.speaker or template.unknown_speaker, text=turn.text or template.missing_transcript
        )
        for turn in turns
    )

    def fill(part: str) -> str:
        try:
            return part.format(**values)
        except KeyError as error:
            raise UserError(f"prompt {template.name!r}: {{{error.args[0]}}} has no meaning for task {task.name!r}") from None

    return RenderedPrompt(fill(template.prefix), fill(template.suffix) + fill(template.task), fill(template.system))


def render_plain(rendered: RenderedPrompt) -> RenderedPrompt:
    """A prompt for a backbone without a chat template: the system message is its first line."""
    head = f"{rendered.system}\n" if rendered.system else ""
    return RenderedPrompt(head + rendered.before, rendered.after)


def render_chat(rendered: RenderedPrompt, tokenizer: PreTrainedTokenizerBase) -> RenderedPrompt:
    """Put a prompt into the tokenizer's chat template; the pseudo tokens stay inside the user's turn.

    A template without a system role gets the system message at the head of the user's turn. One that lets the model think
    first (Qwen3) is told not to: the answer begins where the prompt ends.
    """
    user = rendered.before + SENTINEL + rendered.after

    def apply(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )

    text = ""
    if rendered.system:
        messages = [{"role": "system", "content": rendered.system}, {"role": "user", "content": user}]
        try:
            text = apply(messages)
        except Exception as error:  # chat templates refuse a role by raising jinja2's TemplateError
            if "TemplateError" not in {cls.__name__ for cls in type(error).__mro__}:
                raise
        if rendered.system not in text:
            text = ""
    if not text:
        head = rendered.system + "\n" if rendered.system else ""
        text = apply([{"role": "user", "content": head + user}])
    if text.count(SENTINEL) != 1:
        raise UserError("the tokenizer's chat template does not carry the user's text through once")
    before, after = text.split(SENTINEL)
    return RenderedPrompt(before, after, "")


def preview(
    template: PromptTemplate,
    task: Task,
    text: str | None,
    num_pseudo_tokens: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    history: Sequence[HistoryTurn] = (),
) -> str:
    """What the model reads, pseudo-token positions marked ``⟦P1⟧ …``; with a tokenizer, its tokens are counted."""
    rendered = render(template, task, text, history)
    if tokenizer is not None and tokenizer.chat_template:
        rendered = render_chat(rendered, tokenizer)
    else:
        rendered = render_plain(rendered)
    marks = "".join(f"⟦P{i + 1}⟧" for i in range(num_pseudo_tokens))
    answers = task.answers(template.language, template.answer)
    shown = " | ".join(answers) if len(answers) <= 12 else f"{answers[0]} … {answers[-1]} ({len(answers)} answers)"
    lines = [
        f"# {template.name}: {task.name}, {template.language}, answer as {template.answer}",
        rendered.before + marks + rendered.after + f"⟨{shown}⟩",
    ]
    if tokenizer is not None:
        before, after = (
            len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (rendered.before, rendered.after)
        )
        lines.append(f"# tokens: {before} before, {num_pseudo_tokens} pseudo, {after} after")
    return "\n".join(lines)


def styles() -> list[str]:
    """Names of the shipped styles."""
    return sorted({re.split(r"_(?:en|zh)_", f.stem)[0] for f in prompt_folder().glob("*.yaml")})
