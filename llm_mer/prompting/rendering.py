"""A template filled in for one utterance, and put into the chat format of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from transformers import PreTrainedTokenizerBase

from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate, select_prompt
from llm_mer.prompting.verbatim import Piece, join_pieces

PSEUDO_TOKENS_MARKER = "\u2060pseudo\u2060tokens\u2060"
"""Marks the position of the pseudo tokens while a chat template is applied."""
QUOTED_TEXT_MARKER = re.compile("\u2060words\u2060(\\d+)\u2060")
"""Replaces a user's text while a chat template is applied, so that the template cannot change it."""

EXAMPLE_SEPARATOR = "\n\n"
"""Ends an example in a prompt without a chat template, and what such a prompt's answer is expected to end with."""


@dataclass(frozen=True)
class HistoryTurn:
    """One earlier turn of the dialogue."""

    speaker: str | None
    text: str | None


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt before and after the pseudo tokens, and the system message that goes in front of it, in pieces.

    :attr:`before`, :attr:`after` and :attr:`system` are their texts.
    """

    before_pieces: tuple[Piece, ...]
    after_pieces: tuple[Piece, ...]
    system_pieces: tuple[Piece, ...] = ()

    @property
    def before(self) -> str:
        return join_pieces(self.before_pieces)

    @property
    def after(self) -> str:
        return join_pieces(self.after_pieces)

    @property
    def system(self) -> str:
        return join_pieces(self.system_pieces)


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt about another utterance with its true answer, shown before the one that is asked."""

    prompt: RenderedPrompt
    answer: str

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The prompt without its system message."""
        return (*self.prompt.before_pieces, *self.prompt.after_pieces)


def render(
    template: PromptTemplate,
    task: Task,
    text: str | None,
    history: Sequence[HistoryTurn] = (),
    speaker: str | None = None,
) -> RenderedPrompt:
    """Fill a template in. The user's text goes in as it is: braces in it are text, not placeholders.

    Raises:
        UserError: a template for another kind of task or for other tasks, or a placeholder that the task has no value for.
    """
    if template.kind != task.kind:
        raise UserError(f"prompt {template.name!r} is for {template.kind}, task {task.name!r} is {task.kind}")
    if template.tasks and task.name not in template.tasks:
        raise UserError(f"prompt {template.name!r} is for {', '.join(template.tasks)}, not for task {task.name!r}")

    def quoted_or_default(words: str | None, otherwise: str) -> tuple[Piece, ...]:
        return (Piece(words, quoted=True),) if words else (Piece(otherwise),)

    def template_text(words: str) -> tuple[Piece, ...]:
        return (Piece(words),)

    values: dict[str, tuple[Piece, ...]] = {
        "transcript": quoted_or_default(text, template.missing_transcript),
        "speaker": quoted_or_default(speaker, template.unknown_speaker),
        "task": template_text(task.name),
    }
    if template.language in task.question:
        values["question"] = template_text(task.question[template.language])
    if task.kind == "classification":
        words = task.words(template.language)
        joiner = "、" if template.language == "zh" else ", "
        values["labels"] = template_text(joiner.join(words))
        values["indexed_labels"] = template_text(joiner.join(f"{i} = {word}" for i, word in enumerate(words)))
    else:
        low, high = task.require_range()
        values["low"], values["high"] = template_text(task.format_score(low)), template_text(task.format_score(high))

    def fill(part: str, known: dict[str, tuple[Piece, ...]]) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        for literal, name, _, _ in Formatter().parse(part):
            if literal:
                pieces.append(Piece(literal))
            if name == "question" and name not in known:
                raise UserError(
                    f"task {task.name!r} has no question in language {template.language!r}, which prompt {template.name!r} "
                    f"asks; write question: {{{template.language}: …}} in its file"
                )
            if name is not None and name not in known:
                raise UserError(f"prompt {template.name!r}: {{{name}}} has no meaning for task {task.name!r}")
            pieces += known[name] if name is not None else ()
        return tuple(pieces)

    turns = list(history)[-template.context_turns :] if template.context_turns else []
    values["context"] = tuple(
        piece
        for turn in turns
        for piece in fill(
            template.context_line,
            {
                "speaker": quoted_or_default(turn.speaker, template.unknown_speaker),
                "text": quoted_or_default(turn.text, template.missing_transcript),
            },
        )
    )
    return RenderedPrompt(
        fill(template.prefix, values),
        fill(template.suffix, values) + fill(template.task, values),
        fill(template.system, values),
    )


def check_prompts_differ(templates: Sequence[PromptTemplate], tasks: Sequence[Task], language: str) -> None:
    """Check that no two tasks have the same prompt: the model could not tell which is asked and would answer both alike.

    Raises:
        UserError: naming both tasks, the template, and what to write.
    """
    seen: dict[tuple[str, str, str], Task] = {}
    for task in tasks:
        template = select_prompt(templates, task, language)
        prompt = render(template, task, "…", [HistoryTurn("A", "…")], "A")
        first = seen.setdefault((prompt.system, prompt.before, prompt.after), task)
        if first is not task:
            raise UserError(
                f"tasks {first.name!r} and {task.name!r} have the same prompt in language {language!r} ({template.name}), "
                f"so they would get the same answer; write a question: {{{language}: …}} in each task's file and use "
                f"prompts: [question], or a prompt file for each with tasks: [{first.name}] and tasks: [{task.name}]"
            )


def render_plain(
    rendered: RenderedPrompt, examples: Sequence[AnsweredPrompt] = (), answer_start: str = ""
) -> RenderedPrompt:
    """A prompt for a backbone without a chat template: the system message is its first line.

    Args:
        examples: each stands before it with its answer and a blank line. answer_start: what stands between a prompt and its
            answer.
    """
    head = (*rendered.system_pieces, Piece("\n")) if rendered.system else ()
    for example in examples:
        head += (*example.pieces, Piece(answer_start + example.answer + EXAMPLE_SEPARATOR))
    return RenderedPrompt(head + rendered.before_pieces, rendered.after_pieces)


def render_chat(
    rendered: RenderedPrompt,
    tokenizer: PreTrainedTokenizerBase,
    answer: str | None = None,
    examples: Sequence[AnsweredPrompt] = (),
) -> RenderedPrompt:
    """Put a prompt into the tokenizer's chat template; the pseudo tokens stay inside the user's turn.

    A template without a system role gets the system message at the head of the user's turn. One that lets the model think
    first (Qwen3) is told not to: the answer begins where the prompt ends. A user's text is inserted after the chat template
    has been applied. With an ``answer``, the prompt ends with the assistant's complete turn, not with its beginning.
    Each of the ``examples`` is a turn of the user and one of the assistant before it.
    """
    quoted: list[Piece] = []

    def mark_quoted_text(pieces: Sequence[Piece]) -> str:
        text = ""
        for piece in pieces:
            text += f"\u2060words\u2060{len(quoted)}\u2060" if piece.quoted else piece.text
            if piece.quoted:
                quoted.append(piece)
        return text

    system = mark_quoted_text(rendered.system_pieces)
    earlier: list[dict[str, str]] = []
    for example in examples:
        earlier.append({"role": "user", "content": mark_quoted_text(example.pieces)})
        earlier.append({"role": "assistant", "content": example.answer})
    user = mark_quoted_text(rendered.before_pieces) + PSEUDO_TOKENS_MARKER + mark_quoted_text(rendered.after_pieces)

    def apply(messages: list[dict[str, str]]) -> str:
        if answer is not None:
            messages = [*messages, {"role": "assistant", "content": answer}]
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
            )
        )

    text = ""
    if system:
        messages = [{"role": "system", "content": system}, *earlier, {"role": "user", "content": user}]
        try:
            text = apply(messages)
        except Exception as error:  # chat templates refuse a role by raising jinja2's TemplateError
            if "TemplateError" not in {cls.__name__ for cls in type(error).__mro__}:
                raise
        if system not in text:
            text = ""
    if not text:
        messages = [*earlier, {"role": "user", "content": user}]
        if system:
            messages[0] = {"role": "user", "content": system + "\n" + messages[0]["content"]}
        text = apply(messages)
    places = [int(place) for place in QUOTED_TEXT_MARKER.findall(text)]
    if text.count(PSEUDO_TOKENS_MARKER) != 1 or places != list(range(len(quoted))):
        raise UserError("the tokenizer's chat template does not carry the user's text through once")
    before, after = text.split(PSEUDO_TOKENS_MARKER)

    def restore_quoted_text(part: str) -> tuple[Piece, ...]:
        pieces = [
            quoted[int(found)] if number % 2 else Piece(found)
            for number, found in enumerate(QUOTED_TEXT_MARKER.split(part))
            if found
        ]
        return tuple(pieces)

    return RenderedPrompt(restore_quoted_text(before), restore_quoted_text(after))
