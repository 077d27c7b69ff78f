"""Which attention masks a backbone follows, and masks in the form it expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from llm_mer.errors import UserError

EAGER = "eager"
MASK_AWARE_ATTENTION: tuple[str, ...] = (EAGER, "sdpa")
"""Attention implementations that take a mask, by which they keep samples in one row apart."""
SLIDING_ATTENTION = "sliding_attention"
ALIBI_MODELS: tuple[str, ...] = ("bloom", "mpt")
"""Model types that build their own mask from ALiBi biases."""


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """The attention implementation of a backbone, e.g. ``sdpa``.

    transformers (5.23) has no public attribute for it; only this module reads or sets the private one.
    """
    return config._attn_implementation


@contextmanager
def attention_by_mask(config: PreTrainedConfig) -> Iterator[bool]:
    """Inside the block, attention follows a mask: SDPA replaces flash attention. Yields whether attention is eager."""
    original = attention_implementation(config)
    if original not in MASK_AWARE_ATTENTION:
        config._attn_implementation = "sdpa"
    try:
        yield original == EAGER
    finally:
        config._attn_implementation = original


def attends_by_positions(implementation: str | None) -> bool:
    """Whether attention takes no mask and finds samples by position ids that restart at 0 (flash attention)."""
    return "flash" in (implementation or "")


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that eager attention adds to its scores: 0 where ``visible``, the lowest number of ``dtype`` elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def restricted_layer_types(config: PreTrainedConfig) -> set[str]:
    """Types of the backbone's layers other than full causal attention, e.g. ``{'sliding_attention'}``."""
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not hasattr(config, "layer_types") and getattr(config, "sliding_window", None) is not None:
        layer_types = {SLIDING_ATTENTION}
    return layer_types - {"full_attention"}


def check_mask(config: PreTrainedConfig, length: int) -> None:
    """Check that the backbone would follow a custom attention mask over ``length`` positions.

    Raises:
        UserError: it has layers that ignore a mask, or a sliding window shorter than ``length``.
    """
    unsupported = restricted_layer_types(config)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "alibi", False) or config.model_type in ALIBI_MODELS:
        unsupported = {"attention without rotary positions"}
    if unmasked := ", ".join(sorted(unsupported - {SLIDING_ATTENTION})):
        raise UserError(
            f"this {config.model_type} has layers of {unmasked}, which do not take a mask as it is: "
            "answers side by side would see one another, and cannot be scored; use another backbone"
        )
    if unsupported and window is not None and length > window:
        raise UserError(
            f"prompt and answers take up to {length} positions, and layers of this {config.model_type} see the last "
            f"{window}: lower max_prompt_tokens, or use another backbone"
        )
