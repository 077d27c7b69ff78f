"""Prompts that are too long are told before a training or an evaluation, not when their row is reached."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from llm_mer.data.dataset import MerDataset
from llm_mer.errors import UserError
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import select_prompt

LONGEST_NAMES = 64
"""Tokens that a speaker's name and the words for a missing transcript take at most, when a prompt's length is bounded."""


def backbone_positions(config: PreTrainedConfig) -> int | None:
    """Tokens a backbone has positions for (``max_position_embeddings``); None where its configuration does not say."""
    found: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def check_prompt_lengths(processor: MerProcessor, dataset: MerDataset, positions: int | None, where: str) -> None:
    """Refuse utterances whose prompt, without earlier turns, is longer than ``max_prompt_tokens`` or the backbone reads.

    A text has at most as many tokens as bytes, so only the prompts of long transcripts are tokenised.

    Args:
        positions: of :func:`backbone_positions`; prompt and answer must fit into them. where: names the data.

    Raises:
        UserError: naming the first utterance, its tokens, the limit, and how many there are.
    """
    if processor.tokenizer is None:
        return
    limits: dict[tuple[str, str], tuple[int, str, int, int]] = {}
    texts = dataset.transcripts()
    too_long: list[str] = []
    for question in dataset.questions:
        identifier, language, text = texts[question.row]
        key = (question.task.name, language)
        if key not in limits:
            limits[key] = _limits(processor, question.task, language, positions)
        limit, reason, base, repeats = limits[key]
        if base + repeats * len((text or "").encode()) <= limit:
            continue
        tokens = _prompt_tokens(processor, question.task, language, text, dataset.speaker(question.row))
        if tokens > limit:
            too_long.append(
                f"utterance {identifier!r}: the prompt of task {question.task.name!r} has {tokens} tokens, {reason}"
            )
    if too_long:
        more = f" (and {len(too_long) - 1} more prompts)" if len(too_long) > 1 else ""
        raise UserError(f"{where}: {too_long[0]}{more}; shorten or split the transcript, or leave the utterance out")


def _limits(processor: MerProcessor, task: Task, language: str, positions: int | None) -> tuple[int, str, int, int]:
    """The longest prompt, why, and what bounds the length of one: tokens without text, times that the text stands in it."""
    limit, reason = processor.max_prompt_tokens, f"and max_prompt_tokens is {processor.max_prompt_tokens}"
    template = select_prompt(processor.prompts, task, language)
    if positions is not None:
        longest = 1 + max(len(answer) for answer in processor.answers(task, language))
        if positions - longest < limit:
            limit = positions - longest
            reason = f"and the backbone has positions for {positions}, {longest} of them for the answer"
            if template.context_turns:
                raise UserError(
                    f"max_prompt_tokens: {processor.max_prompt_tokens}, but the backbone has positions for {positions} "
                    f"tokens, {longest} of them for the answer; say max_prompt_tokens: {limit}, so that earlier turns fit"
                )
    base = _prompt_tokens(processor, task, language, None, None) + LONGEST_NAMES
    repeats = sum(part.count("{transcript}") for part in (template.system, template.prefix, template.suffix, template.task))
    return limit, reason, base, max(repeats, 1)


def _prompt_tokens(processor: MerProcessor, task: Task, language: str, text: str | None, speaker: str | None) -> int:
    """Tokens of a prompt without earlier turns, however many there are."""
    return len(processor.encode_prompt(task, language, text, (), speaker=speaker, any_length=True).ids)
