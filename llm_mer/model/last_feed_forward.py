"""The last layer's feed-forward part at the positions that are read, where no other position's output is.

Behind the last layer's attention no position sees another, so its feed-forward part (about two thirds of a layer) changes
what is read only where it is read. All earlier layers, and the keys and values of the last one, are needed everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS: tuple[frozenset[str], ...] = (
    frozenset({"gate_proj", "up_proj", "down_proj"}),  # Llama, Qwen, Mistral, Gemma, SmolLM
    frozenset({"gate_up_proj", "down_proj"}),  # GLM, GLM-4, ChatGLM3, Phi-3
    frozenset({"fc1", "fc2"}),  # Phi
)
"""Names of the layers of a feed-forward part that treats each position by itself and returns one tensor."""


def find_last_feed_forward(language_model: nn.Module) -> nn.Module | None:
    """``layers[-1].mlp`` where it has one of :data:`LAYOUTS`; None elsewhere, as of a mixture of experts."""
    layers = getattr(language_model, "layers", None)
    found = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if not isinstance(found, nn.Module):
        return None
    weighted = {name for name, child in found.named_children() if next(child.parameters(), None) is not None}
    return found if weighted in LAYOUTS else None


@contextmanager
def feed_forward_at(language_model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside the block, the last feed-forward part is computed at ``positions (B, N)`` of its input ``(B, L, H)`` alone.

    There the last hidden state is that of a full forward; elsewhere it means nothing. A backbone whose feed-forward part is
    not recognised computes all positions.
    """
    feed_forward = find_last_feed_forward(language_model)
    if feed_forward is None:
        yield
        return
    rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
    thread = threading.get_ident()
    full_shape: torch.Size | None = None

    def gather(module: nn.Module, given: tuple[Tensor, ...]) -> Any:
        nonlocal full_shape
        if threading.get_ident() != thread:  # another thread's forward of the same model
            return None
        full_shape = given[0].shape
        return (given[0][rows, positions],)  # (B, N, H)

    def scatter(module: nn.Module, given: Any, output: Tensor) -> Any:
        if threading.get_ident() != thread:
            return None
        assert full_shape is not None
        return output.new_zeros(full_shape).index_put((rows, positions), output)

    handles = [feed_forward.register_forward_pre_hook(gather), feed_forward.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
