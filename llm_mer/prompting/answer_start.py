"""What separates a prompt from its answer: a space, a line end or nothing.

A language model was trained on ``Emotion: joy``, not ``Emotion:joy``, and a chat model on assistant turns as its chat
template writes them. An answer that begins differently is improbable for a reason unrelated to the question.
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
"""``joined``: as in running text, or as the chat template writes a turn. ``bare``: directly after the prompt."""
FOLLOWED_BY_SPACE = frozenset(":;,.!?)]")
"""ASCII punctuation that a space follows in running text, as it follows letters and digits."""
EMPTY_THINKING = re.compile(r"<think>\s*</think>\s*\Z")
MAX_TESTED_ANSWERS = 16
"""Number of a task's answers that are tested; of a longer list they are taken at even distances."""


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
    """How the answers to a task begin after the prompts of a template, whatever utterance they are about.

    Raises:
        UserError: see :func:`chat_answer_start`.
    """
    encoder = VerbatimEncoder(tokenizer)

    def encode(text: str) -> list[int]:
        return encoder.encode([Piece(text)])

    rendered = render(template, task, "text")
    answers = sample_evenly(task.answers(template.language, template.answer))
    if in_chat:
        return chat_answer_start(rendered, answers, tokenizer, encode)
    return plain_answer_start(rendered.after, answers, encode)


def plain_answer_start(prompt: str, answers: Sequence[str], encode: Callable[[str], list[int]]) -> AnswerStart:
    """The start of ``answers`` after a prompt without a chat template.

    A space, if the prompt ends in ASCII that text would go on after with one, no answer is of a script without spaces, and
    the vocabulary joins words with the space before them: ``encode("a: joy") = encode("a:") + encode(" joy")``, and not
    ``encode("a:") + encode("joy")``.
    """
    last = prompt[-1:]
    if not last.isascii() or not (last.isalnum() or last in FOLLOWED_BY_SPACE):
        return AnswerStart()
    if any(unicodedata.east_asian_width(answer[0]) in "WF" for answer in answers):
        return AnswerStart()
    before, whole = encode(prompt), [encode(f"{prompt} {answer}") for answer in answers]
    spaced = [before + encode(f" {answer}") for answer in answers]
    bare = [before + encode(answer) for answer in answers]
    return AnswerStart(answer_prefix=" ") if whole == spaced and whole != bare else AnswerStart()


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
    prompts = [prompt]
    if (without_thinking := EMPTY_THINKING.sub("", prompt)) != prompt:
        prompts.append(without_thinking)
    for prompt_so_far in prompts:
        gaps = {_whitespace_between(prompt_so_far, turn, answer) for turn, answer in zip(turns, answers, strict=True)}
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
            own = encode(prompt_so_far + start.prompt_end)
            if all(encode(prompt_so_far + gap + a) == own + encode(answer_prefix + a) for a in answers):
                return start
    # Tokens would merge across the border, but prompts and answers are encoded separately: the text decides.
    return AnswerStart(answer_prefix=" ") if gap == " " else AnswerStart(prompt_end=gap)


def _whitespace_between(prompt: str, turn: str, answer: str) -> str | None:
    """The white space between a prompt and its answer in a turn; None where there is something else."""
    if not turn.startswith(prompt):
        return None
    gap, found, _ = turn[len(prompt) :].partition(answer)
    return gap if found and not gap.strip() else None


def sample_evenly(answers: Sequence[str]) -> list[str]:
    """At most :data:`MAX_TESTED_ANSWERS` answers, the first and the last among them."""
    if len(answers) <= MAX_TESTED_ANSWERS:
        return list(answers)
    return [answers[i * (len(answers) - 1) // (MAX_TESTED_ANSWERS - 1)] for i in range(MAX_TESTED_ANSWERS)]
