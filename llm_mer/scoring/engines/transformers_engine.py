"""The language model in this process, run by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.scoring.answer_scorer import LabelScorer
from llm_mer.scoring.engines.base import OpenedCheckpoint


class TransformersEngine:
    """The whole model, adapter and backbone: a :class:`~llm_mer.model.modeling_mer.MerForConditionalGeneration`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def scorer(self, answers: Sequence[Sequence[int]], end_token_id: int | None) -> LabelScorer:
        """See :class:`~llm_mer.scoring.answer_scorer.LabelScorer`."""
        return LabelScorer(self.model, answers, end_token_id)

    def generate(self, inputs: Mapping[str, Any], end_token_id: int, filler_id: int, max_tokens: int) -> list[list[int]]:
        """Greedy free generation. What ``generate`` returns is cut at the prompt's own ids, not at a fixed offset."""
        output = self.model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, eos_token_id=end_token_id, pad_token_id=filler_id
        )
        prompt = inputs["input_ids"]
        if torch.equal(output[:, : prompt.shape[1]], prompt):
            output = output[:, prompt.shape[1] :]
        found: list[list[int]] = output.tolist()
        return found


def open_engine(folder: Path, backbone: str | None, device: str | None, options: dict[str, Any]) -> OpenedCheckpoint:
    """See :func:`llm_mer.scoring.engines.base.open_engine`; this engine has no options."""
    if options:
        raise UserError(f"engine_options: engine transformers has none, found {', '.join(options)}")
    loaded = load_checkpoint(folder, backbone, device)
    return OpenedCheckpoint(loaded, TransformersEngine(conditional_generation_of(loaded.model)))
