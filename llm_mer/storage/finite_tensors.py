"""Checking loaded weights for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from llm_mer.errors import UserError


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Check tensors in one pass without copying them; integer, empty (sharded) and meta tensors are skipped.

    Raises:
        UserError: naming ``where`` and the first tensor that holds NaN or infinity.
    """
    for name, value in tensors:
        if value.is_floating_point() and value.numel() and value.device.type != "meta":
            low, high = torch.aminmax(value.detach())  # NaN propagates to both
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise UserError(f"{where}: {name} holds NaN or infinity; a model with such weights cannot answer")
