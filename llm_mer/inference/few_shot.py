"""Answered examples before each prompt of an untuned language model (few-shot, Brown et al. 2020).

The examples of a task and language are the same for every utterance that is asked about, so that what they cost is computed
once (:mod:`llm_mer.scoring.prefix_cache`). They come from another split than the one that is scored, and from none of its
dialogues.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_mer.data.dataset import MerDataset, Question
from llm_mer.errors import UserError
from llm_mer.inference.untuned import limit_prompts
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.rendering import EXAMPLE_SEPARATOR, AnsweredPrompt, HistoryTurn, render
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import select_prompt


def draw_examples(truths: Sequence[str | float], count: int, generator: np.random.Generator) -> list[int]:
    """``count`` of the rows that ``truths`` tells the answers of, in random order.

    Labels are drawn in turn, as many of each as of the others as far as there are; of scores one is drawn from each of
    ``count`` parts of equal size, in their order. Fewer than ``count`` rows are all drawn.
    """
    order = generator.permutation(len(truths))
    if len(truths) <= count:
        return [int(row) for row in order]
    if all(isinstance(truth, str) for truth in truths):
        by_label: dict[str, list[int]] = {}
        for row in order:
            by_label.setdefault(str(truths[row]), []).append(int(row))
        turns = [(turn, number, rows[turn]) for number, rows in enumerate(by_label.values()) for turn in range(len(rows))]
        chosen = [row for _, _, row in sorted(turns)[:count]]
    else:
        ranked = sorted((int(row) for row in order), key=lambda row: float(truths[row]))
        chosen = [int(generator.choice(part)) for part in np.array_split(ranked, count)]
    return [int(row) for row in generator.permutation(chosen)]


def add_examples(
    processor: MerProcessor, asked: MerDataset, known: MerDataset, count: int, seed: int, positions: int | None, where: str
) -> dict[str, dict[str, list[str]]]:
    """Put ``count`` answered utterances of ``known`` before the prompts of each task and language that ``asked`` holds.

    Args:
        positions: tokens that the backbone reads, None where it does not say.

    Returns:
        The ids of the examples in their order, by task and language.

    Raises:
        UserError: too few utterances with a transcript and an answer, or a tokenizer that does not end an answer where the
            example does.
    """
    processor.examples, processor.answer_end_id = {}, None
    wanted = {(q.task.name, asked.language(q.row)) for q in asked.questions}
    taken = {asked.identifier(row) for row in asked.rows}, asked.dialogues()
    chosen: dict[tuple[str, str], tuple[AnsweredPrompt, ...]] = {}
    ids: dict[str, dict[str, list[str]]] = {}
    for task in asked.tasks:
        for language in sorted(language for name, language in wanted if name == task.name):
            questions = _usable(known, task, language, *taken)
            if len(questions) < count:
                raise UserError(
                    f"--examples {count}: {where} has {len(questions)} utterances in language {language!r} with a "
                    f"transcript and an answer to task {task.name!r} that are not of the scored dialogues"
                )
            truths = [question.truth for question in questions if question.truth is not None]
            drawn = draw_examples(truths, count, np.random.default_rng([seed, LANGUAGES.index(language)]))
            picked = [questions[row] for row in drawn]
            chosen[task.name, language] = tuple(_answered(processor, known, question, language) for question in picked)
            ids.setdefault(task.name, {})[language] = [known.identifier(question.row) for question in picked]
    if not processor.uses_chat:
        processor.answer_end_id = _find_answer_end(processor, chosen)
    without = _empty_prompts(processor, asked.tasks, ids)
    processor.examples = chosen
    limit_prompts(processor, positions, _empty_prompts(processor, asked.tasks, ids) - without)
    return ids


def _empty_prompts(processor: MerProcessor, tasks: Sequence[Task], ids: dict[str, dict[str, list[str]]]) -> int:
    """Tokens of the longest prompt without a transcript."""
    asked = [(task, language) for task in tasks for language in ids[task.name]]
    prompts = [processor.encode_prompt(task, language, None, (), any_length=True) for task, language in asked]
    return max((len(prompt.ids) for prompt in prompts), default=0)


def _usable(known: MerDataset, task: Task, language: str, taken_ids: set[str], taken_dialogues: set[str]) -> list[Question]:
    """Questions whose utterance has words, an answer and nothing to do with what is scored."""
    texts = known.transcripts()
    return [
        question
        for question in known.questions
        if question.task.name == task.name
        and question.truth is not None
        and known.language(question.row) == language
        and (texts[question.row][2] or "").strip()
        and known.identifier(question.row) not in taken_ids
        and known.dialogue(question.row) not in taken_dialogues
    ]


def _answered(processor: MerProcessor, known: MerDataset, question: Question, language: str) -> AnsweredPrompt:
    """The prompt of an example, with the earlier turns that its template shows, and its answer in words."""
    template = select_prompt(processor.prompts, question.task, language)
    turns = [HistoryTurn(speaker, text) for speaker, text in known.history(question.row, template.context_turns)]
    assert question.truth is not None
    prompt = render(template, question.task, known.utterance(question.row).text, turns, known.speaker(question.row))
    return AnsweredPrompt(prompt, question.task.answer_text(question.truth, language, template.answer))


def _find_answer_end(processor: MerProcessor, chosen: dict[tuple[str, str], tuple[AnsweredPrompt, ...]]) -> int:
    """The token that the blank line behind an example begins with, whatever the answer.

    Raises:
        UserError: the tokenizer joins an answer with the blank line.
    """
    found: set[int] = set()
    for (name, language), examples in chosen.items():
        task = next(task for task in processor.tasks if task.name == name)
        prefix = processor.find_answer_start(task, language).answer_prefix
        for answer in {example.answer for example in examples}:
            alone = processor.encode(prefix + answer)
            followed = processor.encode(prefix + answer + EXAMPLE_SEPARATOR)
            if followed[: len(alone)] != alone or len(followed) == len(alone):
                raise UserError(
                    f"--examples: the tokenizer joins the answer {answer!r} with the line end behind it, so no token ends "
                    "an answer; leave --examples out, or take a backbone with a chat template"
                )
            found.add(followed[len(alone)])
    if len(found) != 1:
        raise UserError("--examples: the tokenizer ends different answers with different tokens; leave --examples out")
    return found.pop()
