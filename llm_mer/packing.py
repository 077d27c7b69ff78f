"""Several samples in one row of a batch, each as if it were alone: rows without padding between short samples.

A batch keeps its samples; only how its prompts are laid out changes. Positions begin again at each sample, attention stays
inside a sample, and each sample has its own pseudo tokens and its own language, so loss and gradients are those of the
padded batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from llm_mer.errors import UserError

MASKED: tuple[str, ...] = ("eager", "sdpa")
"""Attention that is told of the samples by a mask."""


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Samples to the fewest rows of at most ``capacity`` tokens that are found, all about as long as one another.

    The longest first, each into the shortest row (Graham, 1969), with as many rows as that needs: a batch is as wide as its
    longest row, so even rows are what saves padding. Without room for a sample longer than ``capacity``, that is the width.

    >>> pack_rows([3, 7, 2, 5], 9)
    [[1, 2], [0, 3]]
    """
    capacity = max(capacity, *lengths, 1)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for count in range(max(1, -(-sum(lengths) // capacity)), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, row) for row in range(count)]
        for sample in order:
            used, row = heapq.heappop(filled)
            rows[row].append(sample)
            heapq.heappush(filled, (used + lengths[sample], row))
        if max(filled)[0] <= capacity:
            return [sorted(row) for row in rows if row]
    return [[sample] for sample in order]


def attends_by_positions(implementation: str | None) -> bool:
    """Whether attention takes no mask and finds where samples begin from positions that start again (flash attention)."""
    return "flash" in (implementation or "")


def block_causal_mask(sample_ids: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``(R, L) -> (R, 1, L, L)``: a place sees itself and what stands before it in the same sample.

    Padding (-1) sees padding: a place that sees nothing would be NaN. Boolean where ``dtype`` is None, else 0 and the
    lowest number of that type, to be added.
    """
    length = sample_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sample_ids.device).tril()
    visible = ((sample_ids[:, :, None] == sample_ids[:, None, :]) & causal).unsqueeze(1)
    return visible if dtype is None else additive_mask(visible, dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, the lowest number of the type where False: what eager attention adds."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def check_packing(config: PreTrainedConfig, max_prompt_tokens: int) -> None:
    """Refuse a backbone whose layers look beyond a sample, or cannot be told where one begins.

    Raises:
        UserError: naming what the backbone has and what to do.
    """
    implementation = config._attn_implementation
    if implementation not in MASKED and not attends_by_positions(implementation):
        raise UserError(
            f"packing_length: attention {implementation!r} is not one of eager, sdpa, flash_attention_2; choose "
            "attn_implementation, or leave packing_length out"
        )
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    window = getattr(config, "sliding_window", None)
    if not hasattr(config, "layer_types") and window is not None and window <= max_prompt_tokens:
        odd = ["sliding_attention"]
    if odd:
        raise UserError(
            f"packing_length: this {config.model_type} has layers of {', '.join(odd)}, in which samples of one row would "
            "not stay apart; leave packing_length out (train_sampling_strategy: group_by_length saves padding too)"
        )
