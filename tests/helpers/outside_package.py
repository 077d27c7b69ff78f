"""A fusion adapter in a package of its own, as a user would install it, for tests."""

from __future__ import annotations

from pathlib import Path

MODULE = '''"""A fusion adapter outside of llm_mer."""

from dataclasses import dataclass, field

import torch
from torch import nn

from llm_mer.adapters.base import AdapterConfig, FusedFeatures, FusionAdapter
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import masked_mean


@dataclass
class GatedSumConfig(AdapterConfig):
    temperature: float = field(default=1.0, metadata={"help": "of the softmax over modalities"})
    share_gate: bool = field(default=True, metadata={"help": "one gate for all modalities"})


class GatedSumAdapter(FusionAdapter):
    """``h = W sum_m softmax(w h_m / temperature)_m h_m``."""

    name = "gated_sum"
    config_class = GatedSumConfig
    ablations = {"w/o shared gate": {"share_gate": False}}

    def build(self):
        d = self.config.hidden_size
        self.gates = nn.ModuleList(nn.Linear(d, 1, bias=False) for _ in self.gated)
        self.fusion = nn.Linear(d, d)

    @property
    def gated(self):
        if len(self.config.modalities) == 1:
            return ()
        return ("all",) if self.config.share_gate else self.config.modalities

    def fuse(self, inputs):
        pooled = torch.stack([masked_mean(*self.project(inputs, m)) for m in self.config.modalities], dim=1)
        weights = pooled.new_ones(pooled.shape[:2])
        if self.gates:
            scores = [self.gates[i % len(self.gates)](pooled[:, i]) for i in range(pooled.shape[1])]
            weights = torch.softmax(torch.cat(scores, dim=1) / self.config.temperature, dim=1)
        fused = self.fusion((weights.unsqueeze(-1) * pooled).sum(dim=1))
        return FusedFeatures(fused, diagnostics={"sum_weights": weights})

    def diagnostic_info(self, labels=()):
        return [DiagnosticInfo("sum_weights", "Shares of the sum", self.config.modalities, "weights", "shares")]
'''


def write_package(
    folder: Path, entry_point: str | None = "gated_sum", version: str = "0.3", name: str = "mer-extras"
) -> Path:
    """``mer_extras/fusion.py``, and a ``dist-info`` folder beside it where it is to be installed; returns the folder."""
    package = folder / name.replace("-", "_")
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "fusion.py").write_text(MODULE, encoding="utf-8")
    if entry_point is not None:
        info = folder / f"{package.name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(
            f"[llm_mer.adapters]\n{entry_point} = {package.name}.fusion:GatedSumAdapter\n", encoding="utf-8"
        )
    return folder
