"""What is given about an utterance and no part of a checkpoint reads."""

from __future__ import annotations

from collections.abc import Sequence

from llm_mer.data.schema import Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import select_prompt

TRANSCRIPT = "transcript"


def unread_parts(processor: MerProcessor, utterance: Utterance, tasks: Sequence[Task]) -> list[str]:
    """``audio``, ``vision`` and ``text`` for features that the adapter does not read, ``transcript`` for words that neither
    it nor a prompt of the tasks reads.

    Args:
        utterance: in a language that the prompts have.
    """
    read = set(processor.feature_sizes)
    if processor.text_source == "backbone":
        read.discard("text")  # the transcript, not features of it
    unread = [m for m, column in FEATURE_COLUMNS.items() if getattr(utterance, column) is not None and m not in read]
    adapter_reads_words = processor.text_source == "backbone" and "text" in processor.feature_sizes
    if utterance.text and not adapter_reads_words and not _prompts_show_words(processor, utterance.language, tasks):
        unread.append(TRANSCRIPT)
    return unread


def _prompts_show_words(processor: MerProcessor, language: str, tasks: Sequence[Task]) -> bool:
    """Whether any prompt of the tasks shows a transcript; an adapter alone has none."""
    return processor.tokenizer is not None and any(
        f"{{{TRANSCRIPT}}}" in part
        for task in tasks
        for template in [select_prompt(processor.prompts, task, language)]
        for part in (template.system, template.prefix, template.suffix, template.task)
    )


def describe_unread(parts: Sequence[str]) -> str:
    """``audio features and the transcript``."""
    return " and ".join("the transcript" if part == TRANSCRIPT else f"{part} features" for part in parts)
