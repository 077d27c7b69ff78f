"""GIA-MIC: gated interactive attention and modality-invariant learning constraints (arXiv 2506.00865).

Each modality reads every other through a gated attention (its modality-specific representation, MSR); a generator
queries each MSR with all modalities together (its modality-invariant representation, MIR); a symmetric divergence pulls
the invariant representations of a sample together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_mer.adapters.base import AdapterConfig, FusedFeatures, FusionAdapter, FusionInputs
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import MultiHeadAttention, attend, masked_mean, real_steps_to_front

FLAT_GATE_VARIANCE = 1e-3
NUM_PAIRS = 3
"""Pairs of three modalities: what ``mic`` is scaled to whatever is missing."""


@dataclass
class GIAMICConfig(AdapterConfig):
    """Options of GIA-MIC; the first three switches are the rows of the paper's ablation table."""

    use_msr: bool = field(
        default=True,
        metadata={"help": "modality-specific representations: gated interactive attention and its part of the fusion"},
    )
    use_mir: bool = field(default=True, metadata={"help": "modality-invariant representations and their part of the fusion"})
    use_mic: bool = field(default=True, metadata={"help": "the modality-invariant constraint, the mic loss"})
    use_attention_gate: bool = field(
        default=True, metadata={"help": "learn the gate of interactive attention; off: both sides weigh one half"}
    )


class TransformerLayer(nn.Module):
    """One Transformer encoder layer over real steps, ``(B, T, d) -> (B, T, d)``; padded steps come out zero."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size), nn.Dropout(dropout)
        )
        self.norm_attention = nn.LayerNorm(hidden_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        values = self.norm_attention(values + self.attention(values, values, values, mask))
        values = self.norm_feed_forward(values + self.feed_forward(values))
        return values.masked_fill(~mask.unsqueeze(-1), 0.0)


class GatedInteractiveAttention(nn.Module):
    """What modality A takes from modality B.

    ::

        H_AB        = softmax(Q_A K_B^T / √d) V_B                          (B, T_A, d)
        G           = σ(W_g · AvgPool(H_AB) + b_g)                         (B, d)
        H_A^(GIA_B) = G ⊙ H_AB + (1 - G) ⊙ H_A                             (B, T_A, d)

    One head, as the paper writes it. Keys have no bias: the softmax would cancel it. Without the learned gate ``G`` is
    one half (our choice), which keeps the scale of the output.
    """

    def __init__(self, hidden_size: int, learned_gate: bool) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size) if learned_gate else None

    def forward(self, h_a: Tensor, mask_a: Tensor, h_b: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        """``H_A^(GIA_B) (B, T_A, d)`` and ``G (B, d)``."""
        attended, _ = attend(self.query(h_a), self.key(h_b), self.value(h_b), mask_b)
        pooled = masked_mean(attended, mask_a)
        gate = torch.full_like(pooled, 0.5) if self.gate is None else torch.sigmoid(self.gate(pooled))
        mixed = gate.unsqueeze(1) * attended + (1 - gate).unsqueeze(1) * h_a
        return mixed.masked_fill(~mask_a.unsqueeze(-1), 0.0), gate


class ModalityInvariantGenerator(nn.Module):
    """What one modality says to the question all modalities ask together.

    ::

        H^share = CrossAttn(H_VST, H^(MSR), H^(MSR))                                     (B, T, d)
        H^b     = H^share ⊗ σ(Conv1d_1x1([broadcast(pool(H^(MSR))); H_VST]))             (B, T, d)
        H^(MIR) = Conv1d(H^b; kernel 3, stride 2) + AvgPool(H^b; kernel 3, stride 2)     (B, ceil(T / 2), d)

    Pooling and broadcasting ``H^(MSR)`` is our choice: it makes the two lengths agree. The shortcut averages the real
    steps of the convolution's own window. ``H_VST`` must have its real steps first (:func:`real_steps_to_front`), or
    padding between modalities would shift the stride.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attends = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.filter = nn.Conv1d(2 * hidden_size, hidden_size, kernel_size=1)
        self.refine = nn.Conv1d(hidden_size, hidden_size, kernel_size=3, stride=2, padding=1)

    def forward(self, shared: Tensor, shared_mask: Tensor, msr: Tensor, msr_mask: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, T, d), (B, T), (B, T_m, d), (B, T_m)`` to ``H^(MIR) (B, ceil(T / 2), d)`` and its mask."""
        answer = self.attends(shared, msr, msr, msr_mask)
        own = masked_mean(msr, msr_mask).unsqueeze(1).expand(-1, shared.shape[1], -1)
        keep = torch.sigmoid(self.filter(torch.cat([own, shared.to(own.dtype)], dim=-1).transpose(1, 2)))  # (B, d, T)
        real = shared_mask.unsqueeze(1)  # (B, 1, T)
        filtered = (answer.transpose(1, 2) * keep).masked_fill(~real, 0.0)
        weight = F.avg_pool1d(real.to(filtered.dtype), kernel_size=3, stride=2, padding=1)
        mask = shared_mask[:, ::2]  # the centre of each window
        # The share of real steps in a window is at least 1/3 where its centre is real.
        shortcut = F.avg_pool1d(filtered, kernel_size=3, stride=2, padding=1) / weight.clamp(min=1 / 3)
        invariant = (self.refine(filtered) + shortcut).transpose(1, 2)
        return invariant.masked_fill(~mask.unsqueeze(-1), 0.0), mask


class GIAMICAdapter(FusionAdapter):
    """Gated interactive attention with modality-invariant constraints, arXiv 2506.00865.

    ::

        H_M       = Transformer(projected M)                                             (B, T_M, d)
        H_A^(MSR) = Σ_{B≠A} H_A^(GIA_B)                                                  (B, T_A, d)
        H_VST     = concat_time(H_V, H_S, H_T)                                           (B, T, d)
        H_M^(MIR) = ModalityInvariantGenerator(H_VST, H_M^(MSR))                         (B, ceil(T / 2), d)
        h         = [pool MSR_V,S,T ; pool MIR_V,S,T]                                    (B, 6 d)
        mic       = Σ_{V-S, S-T, T-V} D_SKL(softmax(pool MIR_X), softmax(pool MIR_Y))

    ``h`` goes to the classifier (``ce``, with ``auxiliary_head``) and to the pseudo tokens; the weight γ of ``mic`` is 0.1.
    A missing modality is one learned step: others may attend to it and it stands in ``H_VST``, its own pairs A→B are
    skipped (its MSR is the stand-in itself), and the pairs of ``mic`` it belongs to drop out, the rest rescaled to three.
    ``mic`` is the mean over samples with at least one pair.

    The Transformer layers and the attention know no positions; the strided convolution of the generator does, so with MIR
    the order of steps matters, and without it reversing a sequence in time changes nothing.

    Our choices: without MSR, ``H_M`` takes its place as the generator's key and value and only MIR is fused; without MIR
    only MSR is fused and there is no ``mic``. Fewer modalities in the configuration mean fewer pairs and a shorter ``h``.

    Diagnostics: ``gate_mean``, ``gate_variance`` of ``G`` over its dimensions and ``gate_used`` (1 where A is present),
    each (B, ordered pairs) in the order of :attr:`ordered_pairs`; ``invariant_divergence`` D_SKL (B, pairs), zero for a
    pair that drops out.
    """

    name: ClassVar[str] = "gia_mic"
    config_class: ClassVar[type[AdapterConfig]] = GIAMICConfig
    default_loss_weights: ClassVar[dict[str, float]] = {"ce": 1.0, "l1": 1.0, "mic": 0.1}
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o MSR": {"use_msr": False},
        "w/o MIR": {"use_mir": False},
        "w/o MIC": {"use_mic": False},
        "w/o attention gate": {"use_attention_gate": False},
    }
    config: GIAMICConfig

    @property
    def order(self) -> tuple[str, ...]:
        """Modalities in the paper's order, vision, speech, text: the strided convolution sees it."""
        return tuple(m for m in ("vision", "audio", "text") if m in self.config.modalities)

    @property
    def ordered_pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs A→B of gated interactive attention."""
        return tuple((a, b) for a in self.order for b in self.order if a != b)

    @property
    def output_size(self) -> int:
        parts = int(self.config.use_msr) + int(self.config.use_mir)
        return parts * len(self.config.modalities) * self.config.hidden_size

    def build(self) -> None:
        config, d = self.config, self.config.hidden_size
        if not config.use_msr and not config.use_mir:
            raise ValueError("GIA-MIC needs use_msr or use_mir: without both nothing is left to fuse")
        self.encoders = nn.ModuleDict({m: TransformerLayer(d, config.num_heads, config.dropout) for m in self.order})
        self.interactions = nn.ModuleDict()
        if config.use_msr:
            self.interactions.update(
                {f"{a}_{b}": GatedInteractiveAttention(d, config.use_attention_gate) for a, b in self.ordered_pairs}
            )
        self.generators = nn.ModuleDict()
        if config.use_mir:
            self.generators.update({m: ModalityInvariantGenerator(d, config.num_heads, config.dropout) for m in self.order})

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        present = self.presence(inputs)
        encoded: dict[str, tuple[Tensor, Tensor]] = {}
        for modality in self.order:
            values, mask = self.project(inputs, modality)
            encoded[modality] = (self.encoders[modality](values, mask), mask)
        specific, diagnostics = self.interact(encoded, present)
        parts: list[Tensor] = []
        if self.config.use_msr:
            parts += [masked_mean(specific[m], encoded[m][1]) for m in self.order]
        losses: dict[str, Tensor] = {}
        if self.config.use_mir:
            invariant = self.generate(encoded, specific)
            parts += [invariant[m] for m in self.order]
            if len(self.order) > 1:
                loss, divergence = invariant_constraint([invariant[m] for m in self.order], [present[m] for m in self.order])
                diagnostics["invariant_divergence"] = divergence
                if self.config.use_mic:
                    losses["mic"] = loss
        return FusedFeatures(torch.cat(parts, dim=-1), losses, diagnostics)

    def presence(self, inputs: FusionInputs) -> dict[str, Tensor]:
        """``{modality: (B,) bool}``, False where a sample lacks it; read from the inputs, since a stand-in looks real."""
        present = {}
        for modality in self.order:
            sequence = inputs.sequence(modality)
            if sequence is None:
                device = next(self.projections[modality].parameters()).device
                present[modality] = torch.zeros(inputs.batch_size, dtype=torch.bool, device=device)
            else:
                present[modality] = sequence.mask.bool().any(dim=1)
        return present

    def interact(
        self, encoded: dict[str, tuple[Tensor, Tensor]], present: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``{modality: H^(MSR)}`` and the gates' diagnostics."""
        specific: dict[str, Tensor] = {}
        gates: list[Tensor] = []
        used: list[Tensor] = []
        for a, (h_a, mask_a) in encoded.items():
            taken: list[Tensor] = []
            for b, (h_b, mask_b) in encoded.items():
                if f"{a}_{b}" in self.interactions:
                    mixed, gate = self.interactions[f"{a}_{b}"](h_a, mask_a, h_b, mask_b)
                    taken.append(mixed)
                    gates.append(gate)
                    used.append(present[a].to(gate.dtype))
            specific[a] = h_a
            if taken:
                specific[a] = torch.where(present[a][:, None, None], torch.stack(taken).sum(dim=0), h_a)
        if not gates or not self.config.use_attention_gate:
            return specific, {}
        stacked = torch.stack(gates, dim=1)  # (B, P, d)
        return specific, {
            "gate_mean": stacked.mean(dim=-1),
            "gate_variance": stacked.var(dim=-1, unbiased=False),
            "gate_used": torch.stack(used, dim=1),
        }

    def generate(self, encoded: dict[str, tuple[Tensor, Tensor]], specific: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{modality: pooled H^(MIR) (B, d)}``."""
        shared, mask = real_steps_to_front(
            torch.cat([encoded[m][0] for m in self.order], dim=1), torch.cat([encoded[m][1] for m in self.order], dim=1)
        )
        pooled = {}
        for modality in self.order:
            values, values_mask = self.generators[modality](shared, mask, specific[modality], encoded[modality][1])
            pooled[modality] = masked_mean(values, values_mask)
        return pooled

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        found = []
        if self.interactions and self.config.use_attention_gate:
            arrows = tuple(f"{a}→{b}" for a, b in self.ordered_pairs)
            found += [
                DiagnosticInfo("gate_mean", "Gate means", arrows, "gates"),
                DiagnosticInfo("gate_variance", "Gate variances", arrows),
                DiagnosticInfo("gate_used", "Gates in use", arrows),
            ]
        if self.config.use_mir and len(self.order) > 1:
            pairs = tuple(f"{a}, {b}" for a, b in combinations(self.order, 2))
            found.append(DiagnosticInfo("invariant_divergence", "Divergence of the invariant representations", pairs))
        return found

    def warnings_from(self, diagnostics: dict[str, Tensor]) -> list[str]:
        """A gate that is the same in all its dimensions, the paper's failure sign (:func:`gate_warnings`)."""
        if "gate_variance" not in diagnostics:
            return []
        return gate_warnings(
            self.ordered_pairs, diagnostics["gate_mean"], diagnostics["gate_variance"], diagnostics["gate_used"]
        )


def symmetric_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(P ‖ Q) + KL(Q ‖ P) = Σ (p - q)(log p - log q)``: ``(..., d) -> (...)``; at least 0, 0 only where equal."""
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)


def invariant_constraint(vectors: list[Tensor], present: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``mic`` and its parts: the divergence of every pair of softmax-normalised vectors.

    Args:
        vectors: ``M`` tensors ``(B, d)``. present: ``M`` tensors ``(B,)`` bool.

    Returns:
        The mean over samples with a pair, a zero that keeps the graph when there is none, and ``(B, pairs)`` before the
        rescaling to three pairs, zero where a side is missing.
    """
    logs = [torch.log_softmax(v.float() if v.dtype in (torch.bfloat16, torch.float16) else v, dim=-1) for v in vectors]
    pairs = list(combinations(range(len(vectors)), 2))
    both = torch.stack([present[i] & present[j] for i, j in pairs], dim=1)  # (B, pairs)
    divergence = torch.stack([symmetric_kl(logs[i], logs[j]) for i, j in pairs], dim=1) * both
    count = both.sum(dim=1)  # (B,)
    per_sample = divergence.sum(dim=1) * NUM_PAIRS / count.clamp(min=1)
    return per_sample.sum() / (count > 0).sum().clamp(min=1), divergence


def gate_warnings(
    pairs: tuple[tuple[str, str], ...], gate_mean: Tensor, gate_variance: Tensor, gate_used: Tensor
) -> list[str]:
    """Pairs whose gate hardly varies over its dimensions, among ``N`` samples where it was used: ``(N, P)`` each."""
    warnings = []
    for column, (a, b) in enumerate(pairs):
        rows = gate_used[:, column] > 0
        if not bool(rows.any()):
            continue
        mean, variance = float(gate_mean[rows, column].mean()), float(gate_variance[rows, column].mean())
        if variance < FLAT_GATE_VARIANCE:
            warnings.append(
                f"GIA-MIC's gate {a}→{b} does not select: variance over dimensions {variance:.1e}, mean {mean:.2f}"
            )
    return warnings
