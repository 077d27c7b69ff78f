"""The language model in this process, run by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.precision import AUTO
from llm_mer.errors import UserError
from llm_mer.model.collator import pad_prompts
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_scorer import AnswerTreeScorer
from llm_mer.scoring.engines.base import OpenedCheckpoint


class TransformersEngine(AnswerTreeScorer):
    """The whole model, adapter and backbone, in this process."""

    def generate(
        self,
        prompts: Sequence[PromptIds],
        inputs: Mapping[str, Any],
        end_token_id: int,
        filler_id: int,
        max_tokens: int,
    ) -> list[list[int]]:
        """Greedy free generation. What ``generate`` returns is cut at the prompt's own ids, not at a fixed offset."""
        ids, mask, pseudo_tokens = (tensor.to(self.device) for tensor in pad_prompts(prompts, filler_id, left=True))
        model: Any = self.model  # transformers declares generate for its own models alone
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pseudo_token_mask=pseudo_tokens,
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=end_token_id,
            pad_token_id=filler_id,
        )
        if torch.equal(output[:, : ids.shape[1]], ids):
            output = output[:, ids.shape[1] :]
        found: list[list[int]] = output.tolist()
        return found


def open_engine(
    folder: Path, backbone: str | None, device: str | None, options: dict[str, Any], dtype: str | torch.dtype = AUTO
) -> OpenedCheckpoint:
    """See :func:`llm_mer.scoring.engines.base.open_engine`; this engine has no options."""
    if options:
        raise UserError(f"engine_options: engine transformers has none, found {', '.join(options)}")
    loaded = load_checkpoint(folder, backbone, device, dtype)
    core: Any = conditional_generation_of(loaded.model)  # an adapter alone has an engine that is never asked
    return OpenedCheckpoint(loaded, TransformersEngine(core))
