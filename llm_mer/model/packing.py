"""Several samples in one row of a batch, each as if it were alone: rows without padding between short samples.

A batch keeps its samples; only how its prompts are laid out changes. Positions begin again at each sample, attention stays
inside a sample, and each sample has its own pseudo tokens and its own language, so loss and gradients are those of the
padded batch. What several samples of a row begin with, an instruction, stands before them once: each sees it and goes on
from its last position, which is what it would do with a copy of its own.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from llm_mer.backbones.attention import (
    MASK_AWARE_ATTENTION,
    SLIDING_ATTENTION,
    additive_mask,
    attends_by_positions,
    attention_implementation,
    restricted_layer_types,
)
from llm_mer.errors import UserError

SHARED_FROM = 8
"""Tokens from which on a shared prefix is worth computing apart."""


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


@dataclass(frozen=True)
class Group:
    """Samples, by index, that stand in one row after the ``shared`` tokens that all of them begin with."""

    shared: int
    samples: tuple[int, ...]


def pack_groups(
    prefixes: Sequence[Hashable | None], shared: Sequence[int], lengths: Sequence[int], capacity: int
) -> list[list[Group]]:
    """Rows of at most ``capacity`` tokens in which samples of one prefix stand behind a single copy of it.

    Args:
        prefixes: of each sample, equal where samples may share one, None where it keeps its own. shared: its tokens.
            lengths: tokens of each sample, the prefix included.

    >>> pack_groups(["a", None, "a"], [8, 0, 8], [10, 4, 11], 20)
    [[Group(shared=8, samples=(0, 2)), Group(shared=0, samples=(1,))]]
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for sample, prefix in enumerate(prefixes):
        alone = prefix is None or shared[sample] < SHARED_FROM
        members[("alone", sample) if alone else ("shared", prefix)].append(sample)
    groups, sizes = [], []
    for found in members.values():
        begin = shared[found[0]] if len(found) > 1 else 0
        rests = [lengths[sample] - begin for sample in found]
        for part in pack_rows(rests, capacity - begin):
            groups.append(Group(begin if len(part) > 1 else 0, tuple(found[i] for i in part)))
            sizes.append(sum(lengths[sample] - groups[-1].shared for sample in groups[-1].samples) + groups[-1].shared)
    return [[groups[i] for i in row] for row in pack_rows(sizes, capacity)]


def block_causal_mask(sample_ids: Tensor, dtype: torch.dtype | None, shared_prefix_ids: Tensor | None = None) -> Tensor:
    """``(R, L) -> (R, 1, L, L)``: a position sees itself and what stands before it in the same sample, or in its prefix.

    ``shared_prefix_ids (R, L)`` is the number that the prefix of a position's sample has in ``sample_ids``, -2 without.
    Padding (-1) sees padding: a position that sees nothing would be NaN. Boolean where ``dtype`` is None, else 0 and the
    lowest number of that type, to be added.
    """
    length = sample_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sample_ids.device).tril()
    alike = sample_ids[:, :, None] == sample_ids[:, None, :]
    if shared_prefix_ids is not None:
        alike |= shared_prefix_ids[:, :, None] == sample_ids[:, None, :]
    visible = (alike & causal).unsqueeze(1)
    return visible if dtype is None else additive_mask(visible, dtype)


def check_packing(config: PreTrainedConfig, max_prompt_tokens: int) -> None:
    """Refuse a backbone whose layers look beyond a sample, or cannot be told where one begins.

    Raises:
        UserError: naming what the backbone has and what to do.
    """
    implementation = attention_implementation(config)
    if implementation not in MASK_AWARE_ATTENTION and not attends_by_positions(implementation):
        raise UserError(
            f"packing_length: attention {implementation!r} is not one of eager, sdpa, flash_attention_2; choose "
            "attn_implementation, or leave packing_length out"
        )
    restricted = sorted(restricted_layer_types(config))
    window = getattr(config, "sliding_window", None)
    if (
        restricted == [SLIDING_ATTENTION]
        and not hasattr(config, "layer_types")
        and window is not None
        and window > max_prompt_tokens
    ):
        restricted = []
    if restricted:
        raise UserError(
            f"packing_length: this {config.model_type} has layers of {', '.join(restricted)}, in which samples of one row "
            "would not stay apart; leave packing_length out (train_sampling_strategy: group_by_length saves padding too)"
        )
