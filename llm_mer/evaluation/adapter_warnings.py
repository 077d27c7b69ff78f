"""What the adapter finds worth a warning in its diagnostics over a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llm_mer.adapters.base import FusionAdapter
from llm_mer.inference.prediction import Prediction


def diagnose(adapter: nn.Module, predictions: Sequence[Prediction]) -> list[str]:
    """What the adapter finds worth warning about in its own diagnostics over a dataset."""
    if not predictions or not isinstance(adapter, FusionAdapter):
        return []
    names = set.intersection(*(set(p.diagnostics) for p in predictions))
    stacked: dict[str, Tensor] = {}
    for name in names:
        rows = [np.asarray(p.diagnostics[name], dtype=np.float32) for p in predictions]
        if len({row.shape for row in rows}) == 1:
            stacked[name] = torch.from_numpy(np.stack(rows))
    return adapter.warnings_from(stacked)
