"""LoRA routed by language: which of its ranks are active is decided for each sample.

EGMF (arXiv 2601.07565) finds that one LoRA helps English and hurts Chinese, and does not say why. Here one LoRA of ``R``
ranks is divided into blocks of ``r``, and a sample of language ``l`` uses only the blocks of its language::

    y = W x + s · B (m_l ⊙ A x)        A: (R, in), B: (out, R), m_l ∈ {0, 1}^R, s = α / r

One block per language is exactly one LoRA per language, ``W x + s · B_l A_l x``; one more block for all languages adds a
shared LoRA. A batch may mix languages. To PEFT it is a single LoRA, so saving, resuming, data-parallel training and
sharding need no code of their own.
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
    """Sets the LoRA ranks that a sample's language does not use to zero.

    Args:
        sharing: one of :data:`LORA_SHARING`. rank: total number of ranks ``R``, a multiple of the number of blocks.

    Attributes:
        table: ``(number of languages, R)``, 1 where a language uses a rank.
        languages: indices into :data:`LANGUAGES`, ``(B,)``, or ``(B, L)`` where rows hold several samples; set by the
            model's forward for the current batch.
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
    """Register a router on every ``lora_A`` of ``model``; None where all languages share all ranks."""
    if sharing == SHARED:
        return None
    router = LanguageRouter(sharing, rank)
    for name, module in model.named_modules():
        if ".lora_A." in f".{name}." and isinstance(module, nn.Linear):
            module.register_forward_hook(router)
    return router
