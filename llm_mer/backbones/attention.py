"""Which attention masks a backbone obeys, and masks in the form it takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from llm_mer.errors import UserError

EAGER = "eager"
MASKED: tuple[str, ...] = (EAGER, "sdpa")
"""Attention that is told of the samples by a mask."""
SLIDING = "sliding_attention"
WITHOUT_MASKS: tuple[str, ...] = ("bloom", "mpt")
"""Families whose attention makes its own mask (ALiBi)."""


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """The implementation a backbone attends with.

    Transformers (5.23) has no public name for it; nothing else here reads or sets the private one.
    """
    return config._attn_implementation


@contextmanager
def attention_by_mask(config: PreTrainedConfig) -> Iterator[bool]:
    """Attention of a kind that obeys a mask: SDPA in place of flash attention, meanwhile. Yields whether it is eager."""
    chosen = attention_implementation(config)
    if chosen not in MASKED:
        config._attn_implementation = "sdpa"
    try:
        yield chosen == EAGER
    finally:
        config._attn_implementation = chosen


def attends_by_positions(implementation: str | None) -> bool:
    """Whether attention takes no mask and finds where samples begin from positions that start again (flash attention)."""
    return "flash" in (implementation or "")


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, the lowest number of the type where False: what eager attention adds."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    """Kinds of the backbone's layers that are more than attention to all that stands before."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not hasattr(config, "layer_types") and getattr(config, "sliding_window", None) is not None:
        kinds = {SLIDING}
    return kinds - {"full_attention"}


def check_mask(config: PreTrainedConfig, length: int) -> None:
    """Refuse a mask of our own over ``length`` places for a backbone that would not keep to it.

    Raises:
        UserError: layers whose window is shorter, or that no mask reaches.
    """
    odd = layer_kinds(config)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "alibi", False) or config.model_type in WITHOUT_MASKS:
        odd = {"attention without rotary positions"}
    if odd - {SLIDING}:
        raise UserError(
            f"this {config.model_type} has layers of {', '.join(sorted(odd - {SLIDING}))}, which do not take a mask as it "
            "is: answers side by side would see one another, and cannot be scored; use another backbone"
        )
    if odd and window is not None and length > window:
        raise UserError(
            f"prompt and answers take up to {length} places, and layers of this {config.model_type} see the last "
            f"{window}: lower max_prompt_tokens, or use another backbone"
        )
