"""Engines: what runs the language model when questions are answered. One file each, one line each in :data:`ENGINES`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_mer.errors import UserError
from llm_mer.storage.yaml_text import parse_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from llm_mer.checkpoints.loading import LoadedCheckpoint
    from llm_mer.scoring.answer_scorer import PrefixCache

ENGINES: dict[str, str] = {
    "transformers": "llm_mer.scoring.engines.transformers_engine",
    "vllm": "llm_mer.scoring.engines.vllm_engine",
}
"""Module of each engine; it is imported when it is chosen, and has an ``open_engine`` like :func:`open_engine` here."""
MAX_ANSWER_TOKENS = 16
"""New tokens of a free generation."""


class AnswerScorer(Protocol):
    """Scores a fixed set of answers after any prompts."""

    def log_probabilities(self, inputs: Mapping[str, Any], kept: PrefixCache | None = None) -> Tensor:
        """``(B, C)`` float32 natural logs, normalised over the ``C`` answers, of a batch of ``B`` prompts.

        An answer's score before that is ``Σ_i log p(token_i | prompt, token_<i)``, over its end token too where it has one.
        """


class Engine(Protocol):
    """Answers batches of prompts, given as the model's keyword arguments: ``MerBatch.model_inputs()``.

    Both ways run the fusion adapter once in this process, so that a hook on it sees what it says.
    """

    def scorer(self, answers: Sequence[Sequence[int]], end_token_id: int | None) -> AnswerScorer:
        """A scorer over the token ids of every admissible answer; None leaves their ends out."""

    def generate(self, inputs: Mapping[str, Any], end_token_id: int, filler_id: int, max_tokens: int) -> list[list[int]]:
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
) -> OpenedCheckpoint:
    """Load a checkpoint for the named engine.

    Args:
        backbone, device: as for :func:`~llm_mer.checkpoints.loading.load_checkpoint`. options: the engine's own.

    Raises:
        UserError: an unknown engine, one that is not installed, options it does not take, or a checkpoint that it or this
            program cannot load.
    """
    if name not in ENGINES:
        raise UserError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    opened: OpenedCheckpoint = importlib.import_module(ENGINES[name]).open_engine(
        Path(folder), backbone, device, dict(options or {})
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
        try:
            found[name] = parse_yaml(value, "--engine_options")
        except UserError:
            raise UserError(f"--engine_options: {text!r}: {value!r} is no value that YAML knows") from None
    return found
