"""EGMF: expert-gated multimodal fusion (arXiv 2601.07565), the organising design.

Text meets the audio-visual sequence in bidirectional cross-attention; three experts of different width refine the fused
vector; a two-level gate weighs them per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llm_mer.adapters.base import AdapterConfig, FusedFeatures, FusionAdapter, FusionInputs
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import MultiHeadAttention, masked_mean, real_steps_first

FEWEST_SAMPLES = 10
"""Fewest samples from which a collapse of the gates is told."""
COLLAPSE_MARGIN = 0.02
REDUNDANT_COSINE = 0.9
EXPERT_PAIRS = ((0, 1), (0, 2), (1, 2))
EXPERTS = ("E1 local", "E2 semantic", "E3 global")


@dataclass
class EGMFConfig(AdapterConfig):
    """Options of EGMF; the switches are the rows of the paper's ablation table."""

    audio_visual_encoder: str = field(
        default="lstm",
        metadata={"help": "encoder of the audio and of the vision sequence", "choices": ["lstm", "transformer"]},
    )
    use_expert_local: bool = field(default=True, metadata={"help": "expert E1, bottleneck d/8, Mish"})
    use_expert_semantic: bool = field(default=True, metadata={"help": "expert E2, bottleneck d/4, GELU"})
    use_expert_global: bool = field(default=True, metadata={"help": "expert E3, bottleneck d/2, SiLU"})
    gating: str = field(
        default="hierarchical",
        metadata={
            "help": "expert weights: the paper's two levels, the feature-driven level alone, or equal",
            "choices": ["hierarchical", "feature", "uniform"],
        },
    )

    @property
    def used_experts(self) -> tuple[bool, bool, bool]:
        """Which of E1, E2, E3 are switched on."""
        return self.use_expert_local, self.use_expert_semantic, self.use_expert_global


class SequenceEncoder(nn.Module):
    """``(B, T, d) -> (B, T, d)``: one bidirectional LSTM of size d/2 over real steps, or one Transformer layer.

    Masked steps may stand anywhere: real steps are moved to the front before packing and back afterwards, so neither
    padding nor its position is seen. Our choice; the paper leaves the encoder open.
    """

    def __init__(self, kind: str, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        if kind == "lstm":
            self.lstm = nn.LSTM(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True)
        elif kind == "transformer":
            self.attention = MultiHeadAttention(hidden_size, num_heads, dropout)
            self.feed_forward = nn.Sequential(
                nn.Linear(hidden_size, 2 * hidden_size), nn.GELU(), nn.Linear(2 * hidden_size, hidden_size)
            )
            self.norm_attention = nn.LayerNorm(hidden_size)
            self.norm_feed_forward = nn.LayerNorm(hidden_size)
        else:
            raise ValueError(f"audio_visual_encoder is {kind!r}; choose lstm or transformer")

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "transformer":
            values = self.norm_attention(values + self.attention(values, values, values, mask))
            return self.norm_feed_forward(values + self.feed_forward(values))
        order = real_steps_first(mask)
        front = values.gather(1, order.unsqueeze(-1).expand_as(values))
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(front, lengths, batch_first=True, enforce_sorted=False)
        encoded, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=values.shape[1])
        restored = torch.zeros_like(encoded).scatter(1, order.unsqueeze(-1).expand_as(encoded), encoded)
        return restored.masked_fill(~mask.unsqueeze(-1), 0.0)


def expert(hidden_size: int, reduction: int, activation: nn.Module) -> nn.Sequential:
    """``Linear(d, d/reduction) → activation → Linear(d/reduction, d)``."""
    width = max(hidden_size // reduction, 1)
    return nn.Sequential(nn.Linear(hidden_size, width), activation, nn.Linear(width, hidden_size))


class EGMFAdapter(FusionAdapter):
    """Expert-gated fusion, arXiv 2601.07565.

    ::

        H_av = concat_time(Enc(H_a), Enc(H_v))
        F_t  = LN(H_t + CrossAttn(H_t, H_av, H_av)),  F_av = LN(H_av + CrossAttn(H_av, H_t, H_t))
        f    = W_f [pool(F_t); pool(F_av)]                                 (B, d)
        w    = softmax(GateNetwork(f)),  α = softmax(MLP([f; w]))          (B, 3)
        f'   = f + Σ_i α_i E_i(f)

    with experts ``E1`` (d/8, Mish, local detail), ``E2`` (d/4, GELU, semantic correlation), ``E3`` (d/2, SiLU, global
    context). The encoder ``Enc`` and the residual in ``f'`` are our choice. Without text (or without audio and vision)
    in the configuration, the side that is left attends to itself.

    With ``audio_visual_encoder: transformer`` nothing knows the positions of steps: reversing a sequence in time changes
    nothing. The ``lstm`` does know their order.

    An expert switched off is not built, and the gates weigh those that are left; one alone needs no gate.

    Diagnostics: ``expert_weights`` α (B, 3), ``feature_gate`` w (B, 3), ``expert_cosine`` (B, 3) between E1E2, E1E3, E2E3;
    zero for an expert switched off.
    """

    name: ClassVar[str] = "egmf"
    config_class: ClassVar[type[AdapterConfig]] = EGMFConfig
    example_options: ClassVar[tuple[dict[str, bool | int | str], ...]] = ({}, {"audio_visual_encoder": "transformer"})
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o E1": {"use_expert_local": False},
        "w/o E2": {"use_expert_semantic": False},
        "w/o E3": {"use_expert_global": False},
        "w/o gating": {"gating": "uniform"},
        "w/o context gate": {"gating": "feature"},
        "repeated token": {"token_expansion": "repeat"},
    }
    config: EGMFConfig

    def build(self) -> None:
        config, d = self.config, self.config.hidden_size
        self.encoders = nn.ModuleDict(
            {
                m: SequenceEncoder(config.audio_visual_encoder, d, config.num_heads, config.dropout)
                for m in config.modalities
                if m != "text"
            }
        )
        self.text_attends = MultiHeadAttention(d, config.num_heads, config.dropout)
        self.audio_visual_attends = MultiHeadAttention(d, config.num_heads, config.dropout)
        self.norm_text = nn.LayerNorm(d)
        self.norm_audio_visual = nn.LayerNorm(d)
        self.fusion = nn.Linear(2 * d, d)
        chosen = [i for i, on in enumerate(config.used_experts) if on]
        if not chosen:
            raise ValueError("EGMF needs at least one of its three experts")
        kinds = ((8, nn.Mish), (4, nn.GELU), (2, nn.SiLU))
        # An expert switched off is not built: it would never learn, only count as a parameter and decay.
        self.experts = nn.ModuleList([expert(d, kinds[i][0], kinds[i][1]()) for i in chosen])
        self.chosen = chosen
        if config.gating not in ("hierarchical", "feature", "uniform"):
            raise ValueError(f"gating is {config.gating!r}; choose hierarchical, feature or uniform")
        count = len(chosen)
        self.gate_network: nn.Linear | None = None
        self.context_gate: nn.Sequential | None = None
        if config.gating != "uniform" and count > 1:  # the softmax over one expert is 1 whatever its gate says
            self.gate_network = nn.Linear(d, count)
            if config.gating == "hierarchical":
                self.context_gate = nn.Sequential(nn.Linear(d + count, d), nn.GELU(), nn.Linear(d, count))

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        sides: dict[str, list[tuple[Tensor, Tensor]]] = {"text": [], "audio_visual": []}
        for modality in self.config.modalities:
            values, mask = self.project(inputs, modality)
            if modality == "text":
                sides["text"].append((values, mask))
            else:
                sides["audio_visual"].append((self.encoders[modality](values, mask), mask))
        text = concat_time(sides["text"] or sides["audio_visual"])
        audio_visual = concat_time(sides["audio_visual"] or sides["text"])
        h_t, mask_t = text
        h_av, mask_av = audio_visual
        f_t = self.norm_text(h_t + self.text_attends(h_t, h_av, h_av, mask_av))
        f_av = self.norm_audio_visual(h_av + self.audio_visual_attends(h_av, h_t, h_t, mask_t))
        fused = self.fusion(torch.cat([masked_mean(f_t, mask_t), masked_mean(f_av, mask_av)], dim=-1))  # (B, d)
        outputs = torch.stack([module(fused) for module in self.experts], dim=1)  # (B, E, d)
        gate, alpha = self.weigh(fused)
        enhanced = fused + (alpha.unsqueeze(-1) * outputs).sum(dim=1)
        diagnostics = {
            "expert_weights": self.spread(alpha),
            "feature_gate": self.spread(gate),
            "expert_cosine": pairwise_cosine(self.spread(outputs)),
        }
        return FusedFeatures(enhanced, diagnostics=diagnostics)

    def weigh(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Feature-driven gate ``w`` and context-aware weights ``α``, each ``(B, E)`` over the experts that exist."""
        if self.gate_network is None:
            gate = fused.new_full((fused.shape[0], len(self.experts)), 1 / len(self.experts))
            return gate, gate
        gate = torch.softmax(self.gate_network(fused), dim=-1)
        if self.context_gate is None:
            return gate, gate
        return gate, torch.softmax(self.context_gate(torch.cat([fused, gate], dim=-1)), dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """Experts that exist at their indices among the three, zeros for the others: ``(B, E, ...) -> (B, 3, ...)``."""
        if len(self.chosen) == 3:
            return values
        spread = values.new_zeros(values.shape[0], 3, *values.shape[2:])
        spread[:, self.chosen] = values
        return spread

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        pairs = tuple(f"E{i + 1}, E{j + 1}" for i, j in EXPERT_PAIRS)
        return [
            DiagnosticInfo("expert_weights", "Expert weights α", EXPERTS, "weights", "expert weights"),
            DiagnosticInfo("feature_gate", "Feature-driven gate w", EXPERTS, "weights"),
            DiagnosticInfo("expert_cosine", "Cosine between experts", pairs),
        ]

    def warnings_from(self, diagnostics: dict[str, Tensor]) -> list[str]:
        """A collapsed gate or redundant experts over a dataset (:func:`egmf_warnings`)."""
        if "expert_weights" not in diagnostics or self.config.gating == "uniform":
            return []
        return egmf_warnings(diagnostics["expert_weights"], diagnostics["expert_cosine"], self.config.used_experts)


def concat_time(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join sequences ``(B, T_i, d)`` and masks along time."""
    return torch.cat([values for values, _ in parts], dim=1), torch.cat([mask for _, mask in parts], dim=1)


def pairwise_cosine(outputs: Tensor) -> Tensor:
    """Cosine between experts 1-2, 1-3, 2-3: ``(B, 3, d) -> (B, 3)``."""
    pairs = [F.cosine_similarity(outputs[:, i], outputs[:, j], dim=-1) for i, j in EXPERT_PAIRS]
    return torch.stack(pairs, dim=-1)


def egmf_warnings(expert_weights: Tensor, expert_cosine: Tensor, used: Sequence[bool] = (True, True, True)) -> list[str]:
    """The paper's two failure signs over ``N`` samples: ``(N, 3), (N, 3)``; experts not ``used`` are left out of both.

    A collapsed gate, of 10 samples or more: mean α within 0.02 of uniform and its per-sample standard deviation under 0.02
    for every expert.
    Redundant experts: a mean pairwise cosine above 0.9.
    """
    warnings = []
    chosen = [i for i, on in enumerate(used) if on]
    mean, std = expert_weights[:, chosen].mean(dim=0), expert_weights[:, chosen].std(dim=0, unbiased=False)
    uniform = ((mean - 1 / len(chosen)).abs() < COLLAPSE_MARGIN).all()
    if len(chosen) > 1 and len(expert_weights) >= FEWEST_SAMPLES and bool(uniform) and bool((std < COLLAPSE_MARGIN).all()):
        warnings.append(
            f"EGMF's gate has collapsed: mean expert weights {[round(v, 3) for v in mean.tolist()]} hardly differ from "
            f"uniform or between samples (std {[round(v, 3) for v in std.tolist()]})"
        )
    for (i, j), value in zip(EXPERT_PAIRS, expert_cosine.mean(dim=0).tolist(), strict=True):
        if used[i] and used[j] and value > REDUNDANT_COSINE:
            warnings.append(
                f"EGMF's experts E{i + 1} and E{j + 1} are redundant: mean cosine {value:.3f} > {REDUNDANT_COSINE}"
            )
    return warnings
