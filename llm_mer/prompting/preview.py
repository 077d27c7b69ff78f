"""A prompt shown as the model reads it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llm_mer.prompting.answer_start import AnswerStart, template_answer_start
from llm_mer.prompting.rendering import HistoryTurn, render, render_chat, render_plain
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate
from llm_mer.prompting.verbatim import Piece, VerbatimEncoder


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
    in_chat = tokenizer is not None and bool(tokenizer.chat_template)
    start = AnswerStart() if tokenizer is None else template_answer_start(template, task, tokenizer, in_chat)
    rendered = render_chat(rendered, tokenizer) if tokenizer is not None and in_chat else render_plain(rendered)
    marks = "".join(f"⟦P{i + 1}⟧" for i in range(num_pseudo_tokens))
    answers = task.answers(template.language, template.answer)
    shown = " | ".join(answers) if len(answers) <= 12 else f"{answers[0]} … {answers[-1]} ({len(answers)} answers)"
    lines = [
        f"# {template.name}: {task.name}, {template.language}, answer as {template.answer}",
        rendered.before + marks + rendered.after + start.prompt_end + f"⟨{shown}⟩",
    ]
    if start.answer_prefix:
        lines.append(f"# each answer begins with {start.answer_prefix!r}")
    if tokenizer is not None:
        encoder = VerbatimEncoder(tokenizer)
        whole = (*rendered.after_pieces, Piece(start.prompt_end))
        before, after = (len(encoder.encode(pieces)) for pieces in (rendered.before_pieces, whole))
        lines.append(f"# tokens: {before} before, {num_pseudo_tokens} pseudo, {after} after")
    return "\n".join(lines)
