"""A gated projector: the smallest adapter worth training, and the example of ``docs/write-an-adapter.md``.

Nothing here is from a paper; it is our baseline beside the five systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from llm_mer.adapters.base import AdapterConfig, FusedFeatures, FusionAdapter, FusionInputs
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import masked_mean


@dataclass
class GatedProjectorConfig(AdapterConfig):
    """Options of the gated projector."""

    use_gate: bool = field(default=True, metadata={"help": "learn a gate per modality; off: a plain sum"})


class GatedProjectorAdapter(FusionAdapter):
    """Project, pool, gate, sum.

    ::

        h_m = pool(project(m))                  (B, d)
        g_m = σ(w_m · h_m + b_m) ∈ (0, 1)       (B,)
        h   = W Σ_m g_m h_m + b                 (B, d)

    A missing modality is its learned stand-in, gated like any other. Steps are pooled without positions: reversing a
    sequence in time changes nothing. Diagnostics: ``modality_gates`` g (B, M).
    """

    name: ClassVar[str] = "gated_projector"
    config_class: ClassVar[type[AdapterConfig]] = GatedProjectorConfig
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o gate": {"use_gate": False},
    }
    config: GatedProjectorConfig

    def build(self) -> None:
        d = self.config.hidden_size
        self.gates = nn.ModuleDict({m: nn.Linear(d, 1) for m in self.config.modalities if self.config.use_gate})
        self.fusion = nn.Linear(d, d)

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        pooled = torch.stack([masked_mean(*self.project(inputs, m)) for m in self.config.modalities], dim=1)  # (B, M, d)
        if not self.config.use_gate:
            return FusedFeatures(self.fusion(pooled.sum(dim=1)))
        scores = [self.gates[m](pooled[:, i]) for i, m in enumerate(self.config.modalities)]
        gates = torch.sigmoid(torch.cat(scores, dim=-1))  # (B, M)
        fused = self.fusion((gates.unsqueeze(-1) * pooled).sum(dim=1))
        return FusedFeatures(fused, diagnostics={"modality_gates": gates})

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        if not self.config.use_gate:
            return []
        return [DiagnosticInfo("modality_gates", "Modality gates", self.config.modalities, "gates", "modality gates")]
