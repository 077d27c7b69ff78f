"""Engines: what runs the language model when questions are answered. One file each, one line each in :data:`ENGINES`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_mer.checkpoints.precision import AUTO
from llm_mer.errors import UserError
from llm_mer.storage.yaml_text import parse_yaml

if TYPE_CHECKING:
    import torch

    from llm_mer.checkpoints.loading import LoadedCheckpoint
    from llm_mer.model.processing_mer import PromptIds
    from llm_mer.scoring.answer_scorer import AnswerScores
    from llm_mer.scoring.prefix_cache import PrefixCache
    from llm_mer.scoring.prompt_layout import TaskPrompts

ENGINES: dict[str, str] = {
    "transformers": "llm_mer.scoring.engines.transformers_engine",
    "vllm": "llm_mer.scoring.engines.vllm_engine",
}
"""Module of each engine; it is imported when it is chosen, and has an ``open_engine`` like :func:`open_engine` here."""
MAX_ANSWER_TOKENS = 16
"""New tokens of a free generation."""


class Engine(Protocol):
    """Answers prompts about a batch of ``B`` utterances.

    ``inputs`` are what the model reads beside prompts, on its device: tensors of ``FUSION_KEYS`` or what the adapter said
    before (``fusion``), and ``language_ids (B,)``. The adapter runs in this process, once a call at most.
    """

    def score(
        self, asked: Sequence[TaskPrompts], inputs: Mapping[str, Any], kept: PrefixCache | None = None
    ) -> list[AnswerScores]:
        """The scores of every task's answers.

        An answer's is ``Σ_i log p(token_i | prompt, token_<i)``, over its end token too where its tree has one. ``kept``
        holds what the prompts of batches before began with, for an engine that makes use of it.
        """

    def generate(
        self,
        prompts: Sequence[PromptIds],
        inputs: Mapping[str, Any],
        end_token_id: int,
        filler_id: int,
        max_tokens: int,
    ) -> list[list[int]]:
        """Greedy free generation: the new token ids of each prompt, which may end in ``end_token_id`` and fillers."""


@dataclass
class OpenedCheckpoint:
    """A checkpoint and what answers its prompts. ``loaded.model`` holds at least the adapter and the token embeddings."""

    loaded: LoadedCheckpoint
    engine: Engine


def open_engine(
    name: str,
    folder: Path | str,
    backbone: str | None = None,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = AUTO,
) -> OpenedCheckpoint:
    """Load a checkpoint for the named engine.

    Args:
        backbone, device, dtype: as for :func:`~llm_mer.checkpoints.loading.load_checkpoint`. options: the engine's own.

    Raises:
        UserError: an unknown engine, one that is not installed, options it does not take, or a checkpoint that it or this
            program cannot load.
    """
    if name not in ENGINES:
        raise UserError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    opened: OpenedCheckpoint = importlib.import_module(ENGINES[name]).open_engine(
        Path(folder), backbone, device, dict(options or {}), dtype
    )
    return opened


def read_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """``["tensor_parallel_size=2"]`` to ``{"tensor_parallel_size": 2}``; values are read as YAML.

    Raises:
        UserError: a text that is no ``NAME=VALUE``.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--engine_options: {text!r} is not NAME=VALUE, e.g. tensor_parallel_size=2")
        if name in found:
            raise UserError(f"--engine_options: {name} is given twice; name it once")
        try:
            found[name] = parse_yaml(value, "--engine_options")
        except UserError:
            raise UserError(f"--engine_options: {text!r}: {value!r} is no value that YAML knows") from None
    return found
