"""LoRA that knows the language of an utterance: which of its ranks take part is decided sample by sample.

EGMF (arXiv 2601.07565) finds that one LoRA helps English and hurts Chinese, and leaves the reason open. Here one LoRA of
``R`` ranks is cut into blocks of ``r``, and a sample of language ``l`` uses the blocks that its language owns::

    y = W x + s · B (m_l ⊙ A x)        A: (R, in), B: (out, R), m_l ∈ {0, 1}^R, s = α / r

With a block a language this is exactly one LoRA a language, ``W x + s · B_l A_l x``; with a block for all beside them, a
shared one plus one a language. A mixed batch is routed row by row, and as it is one LoRA to PEFT, saving, resuming,
data-parallel training and sharding need nothing of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llm_mer.backbones.lora_sharing import BOTH, PER_LANGUAGE, SHARED
from llm_mer.prompting.languages import LANGUAGES


def language_blocks(sharing: str) -> list[tuple[str, ...]]:
    """The languages that use each block of ranks, in order.

    >>> language_blocks("shared_and_per_language")
    [('en', 'zh'), ('en',), ('zh',)]
    """
    own: list[tuple[str, ...]] = [(language,) for language in LANGUAGES]
    blocks = {SHARED: [LANGUAGES], PER_LANGUAGE: own, BOTH: [LANGUAGES, *own]}
    return blocks[sharing]


class LanguageRouter:
    """Zeroes the ranks of LoRA that a sample's language does not use.

    Args:
        sharing: one of :data:`LORA_SHARING`. rank: all ranks together, a multiple of the number of blocks.

    Attributes:
        table: ``(languages, R)`` of 0 and 1. languages: ``(B,)`` of the batch in work, or ``(B, L)`` of each place where a
            row holds several samples; set by the model's forward.
    """

    def __init__(self, sharing: str, rank: int) -> None:
        blocks = language_blocks(sharing)
        if rank % len(blocks):
            raise ValueError(f"{rank} ranks cannot be cut into {len(blocks)} blocks")
        self.table = torch.zeros(len(LANGUAGES), rank)
        size = rank // len(blocks)
        for number, owners in enumerate(blocks):
            for language in owners:
                self.table[LANGUAGES.index(language), number * size : (number + 1) * size] = 1.0
        self.languages: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        """Forward hook of ``lora_A``: ``(B, L, R)`` with the ranks of other languages at zero."""
        if self.languages is None:
            raise ValueError("this model's LoRA is routed by language: give language_ids")
        if output.shape[0] != self.languages.shape[0]:
            raise ValueError(f"language_ids are of {self.languages.shape[0]} samples, the batch has {output.shape[0]}")
        mask = self.table.to(output.device, output.dtype)[self.languages]  # (B, R) or (B, L, R)
        return output * mask.view(*mask.shape[:-1], *(1,) * (output.ndim - mask.ndim), mask.shape[-1])


def route_by_language(model: nn.Module, sharing: str, rank: int) -> LanguageRouter | None:
    """Put a router behind every ``lora_A`` of ``model``; None where all languages share all ranks."""
    if sharing == SHARED:
        return None
    router = LanguageRouter(sharing, rank)
    for name, module in model.named_modules():
        if ".lora_A." in f".{name}." and isinstance(module, nn.Linear):
            module.register_forward_hook(router)
    return router
