"""A template filled in for one utterance, and put into the chat format of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate

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
