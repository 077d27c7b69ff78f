"""The keys and values of what all prompts of a batch begin with, computed once and kept for the batches that begin alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PrefixLayer(DynamicLayer):
    """One layer's keys and values ``(1, heads, P, size)`` of a shared prefix, which every row of any batch goes on from.

    What a batch adds is not stored: each layer's keys and values are free again when its attention has read them.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``(B, heads, L, size)`` of a batch to ``(B, heads, P + L, size)``, the prefix in front."""
        rows = key_states.shape[0]
        assert self.keys is not None
        assert self.values is not None
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=2)
        values = torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=2)
        return keys, values


def prefix_layers(computed: Cache) -> Cache:
    """A cache to go on from, of the cache that a forward of one row has filled."""
    layers: list[Any] = computed.layers
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])


@dataclass
class PrefixCache:
    """The shared prefixes of the last batch, computed: the next batch that begins alike takes them as they are.

    Right as long as the weights stay, those of a language too where LoRA is routed by it: whoever scores batch after batch
    of the same tasks and language holds one, and lets it go.

    Attributes:
        found: for each pass over a batch, the prefix's ids and its keys and values (:class:`PrefixLayer`).
    """

    found: dict[int, tuple[tuple[int, ...], Cache]] = field(default_factory=dict)
