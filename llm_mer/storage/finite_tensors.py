"""Weights that hold NaN or infinity, found in one pass when they are loaded."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from llm_mer.errors import UserError


def require_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """One pass over tensors without copies of them; those that hold no real numbers, or are sharded away, are passed over.

    Raises:
        UserError: naming ``where`` and the first tensor that holds NaN or infinity.
    """
    for name, value in tensors:
        if value.is_floating_point() and value.numel() and value.device.type != "meta":
            low, high = torch.aminmax(value.detach())  # NaN where there is one
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise UserError(f"{where}: {name} holds NaN or infinity; such a model answers nothing")
