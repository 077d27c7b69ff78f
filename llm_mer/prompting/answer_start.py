"""Where an answer begins: what stands between a prompt's own text and the text of its answer.

A language model has read ``Emotion: joy``, not ``Emotion:joy``, and in a chat it has read the assistant's turn as its chat
template writes it. An answer that begins otherwise is improbable for a reason that has nothing to do with the question.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llm_mer.errors import UserError
from llm_mer.prompting.rendering import RenderedPrompt, render, render_chat
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate
from llm_mer.prompting.verbatim import Piece, VerbatimEncoder

JOINED, BARE = "joined", "bare"
ANSWER_STARTS: tuple[str, ...] = (JOINED, BARE)
"""``joined``: as text goes on, or as the chat template writes a turn. ``bare``: at once, as before this was known."""
ASKS_FOR_A_SPACE = frozenset(":;,.!?)]")
"""ASCII signs after which text goes on with a space, beside letters and digits."""
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*\Z")
TRIED = 16
"""Answers of a task that are looked at; those of a longer list lie evenly in it."""


@dataclass(frozen=True)
class AnswerStart:
    """What stands between a prompt's own text and the text of an answer.

    Attributes:
        prompt_end: the part that belongs to the prompt: a line end after ``<|assistant|>``.
        answer_prefix: the part that belongs to the answer's first token: a space, where words are written with the one
            before them.
    """

    prompt_end: str = ""
    answer_prefix: str = ""


def template_answer_start(
    template: PromptTemplate, task: Task, tokenizer: PreTrainedTokenizerBase, in_chat: bool
) -> AnswerStart:
    """How the answers to a task begin after a template's prompts, whatever is put into them.

    Raises:
        UserError: see :func:`chat_answer_start`.
    """
    encoder = VerbatimEncoder(tokenizer)

    def encode(text: str) -> list[int]:
        return encoder.encode([Piece(text)])

    rendered = render(template, task, "text")
    answers = spread(task.answers(template.language, template.answer))
    if in_chat:
        return chat_answer_start(rendered, answers, tokenizer, encode)
    return plain_answer_start(rendered.after, answers, encode)


def plain_answer_start(prompt: str, answers: Sequence[str], encode: Callable[[str], list[int]]) -> AnswerStart:
    """The start of ``answers`` after a prompt that no chat template surrounds.

    A space, if the prompt ends in ASCII that text would go on after with one, no answer is of a script without spaces, and
    the vocabulary joins words with the space before them: ``encode("a: joy") = encode("a:") + encode(" joy")``, and not
    ``encode("a:") + encode("joy")``.
    """
    last = prompt[-1:]
    if not last.isascii() or not (last.isalnum() or last in ASKS_FOR_A_SPACE):
        return AnswerStart()
    if any(unicodedata.east_asian_width(answer[0]) in "WF" for answer in answers):
        return AnswerStart()
    before, joined = encode(prompt), [encode(f"{prompt} {answer}") for answer in answers]
    spaced = [before + encode(f" {answer}") for answer in answers]
    bare = [before + encode(answer) for answer in answers]
    return AnswerStart(answer_prefix=" ") if joined == spaced and joined != bare else AnswerStart()


def chat_answer_start(
    rendered: RenderedPrompt,
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[str], list[int]],
) -> AnswerStart:
    """The start of ``answers`` in a chat: the assistant's turn as the chat template itself writes it.

    Most templates end their generation prompt where the answer begins. Some leave out white space that their turns have
    (ChatGLM3: the line end after ``<|assistant|>``), and it is put in. An empty thought that tells a model not to think may
    stand in the generation prompt alone.

    Args:
        rendered: a prompt about any utterance, not yet in the chat format.

    Raises:
        UserError: a generation prompt that no turn begins with, or more than white space between it and the answer.
    """
    prompt = render_chat(rendered, tokenizer).after
    turns = [render_chat(rendered, tokenizer, answer).after for answer in answers]
    shown = [prompt]
    if (thoughtless := EMPTY_THOUGHT.sub("", prompt)) != prompt:
        shown.append(thoughtless)
    for beginning in shown:
        gaps = {_gap(beginning, turn, answer) for turn, answer in zip(turns, answers, strict=True)}
        gap = next(iter(gaps))
        if len(gaps) == 1 and gap is not None:
            break
    else:
        raise UserError(
            f"the tokenizer's chat template ends a prompt in {prompt[-40:]!r}, but writes an answered one "
            f"{turns[0][-80:]!r}: the answer would stand where the backbone expects something else; use chat: never, or a "
            "tokenizer whose generation prompt ends where the assistant's answer begins"
        )
    for length in range(len(gap) + 1):
        for answer_prefix in ("", " "):
            start = AnswerStart(gap[:length], answer_prefix)
            own = encode(beginning + start.prompt_end)
            if all(encode(beginning + gap + a) == own + encode(answer_prefix + a) for a in answers):
                return start
    # Tokens merge over the seam, where prompts and answers are encoded apart: the text decides.
    return AnswerStart(answer_prefix=" ") if gap == " " else AnswerStart(prompt_end=gap)


def _gap(prompt: str, turn: str, answer: str) -> str | None:
    """The white space between a prompt and its answer in a turn; None where there is something else."""
    if not turn.startswith(prompt):
        return None
    gap, found, _ = turn[len(prompt) :].partition(answer)
    return gap if found and not gap.strip() else None


def spread(answers: Sequence[str]) -> list[str]:
    """At most :data:`TRIED` answers, the first and the last among them."""
    if len(answers) <= TRIED:
        return list(answers)
    return [answers[i * (len(answers) - 1) // (TRIED - 1)] for i in range(TRIED)]
