"""LPGNet: a lightweight network with parallel attention and gated fusion for emotion recognition in conversations.

He and Xiao's paper has no arXiv number in our notes. Text and audio (vision is our extension) of a conversation window
attend to themselves and to each other in parallel; two gates fuse them at the target utterance; unimodal students,
trained beside the fused teacher, are thrown away for inference. Who speaks is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_mer.adapters.base import (
    IGNORE_CLASS,
    AdapterConfig,
    FusedFeatures,
    FusionAdapter,
    FusionInputs,
    FusionTargets,
)
from llm_mer.adapters.context_window import utterance_window, vector_sizes
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import (
    AuxiliaryHead,
    HeadOutput,
    attend,
    class_loss,
    masked_mean,
    real_steps_first,
    score_loss,
    score_unit,
)


@dataclass
class LPGNetConfig(AdapterConfig):
    """Options of LPGNet; the ``use_`` switches are the rows of the paper's ablation table, its gates split in two."""

    level: str = field(
        default="utterance",
        metadata={
            "help": "what the attention runs over: utterances of the conversation window, or frames of the target",
            "choices": ["utterance", "frame"],
        },
    )
    max_frames: int = field(default=512, metadata={"help": "frames read per modality at level frame; later ones are cut"})
    feed_forward_factor: int = field(default=2, metadata={"help": "size of the feed-forward layer, in units of d"})
    norm: str = field(
        default="layer",
        metadata={
            "help": "normalisation of the compressed context: layer, or the paper's batch (breaks batch independence)",
            "choices": ["layer", "batch"],
        },
    )
    use_inter: bool = field(default=True, metadata={"help": "attention between modalities"})
    use_intra: bool = field(default=True, metadata={"help": "attention within a modality"})
    use_feed_forward: bool = field(
        default=True, metadata={"help": "position-wise feed-forward; off: the attention output is added as it is"}
    )
    use_unimodal_gate: bool = field(default=True, metadata={"help": "gate every attention path"})
    use_multimodal_gate: bool = field(default=True, metadata={"help": "learned modality weights; off: equal weights"})
    use_distillation: bool = field(default=True, metadata={"help": "train unimodal students beside the fused teacher"})
    temperature: float = field(default=1.0, metadata={"help": "temperature T of the distillation"})


class UtteranceProjection(nn.Module):
    """Utterance vectors to ``d`` by a 1×1 Conv1d and LayerNorm; a learned stand-in where an utterance lacks the modality.

    Shapes: ``(B, U, D_m), (B, U) -> (B, U, d)``. The stand-in asks as a query but is never a key (our choice).
    """

    def __init__(self, size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, hidden_size, kernel_size=1)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.missing = nn.Parameter(torch.randn(hidden_size) / hidden_size**0.5)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        values = self.conv(vectors.to(self.conv.weight.dtype).transpose(1, 2)).transpose(1, 2)
        values = self.dropout(self.norm(values))
        return torch.where(present.unsqueeze(-1), values, self.missing.to(values.dtype))


class InteractionPath(nn.Module):
    """One of the parallel attentions with its two-stage residual, LPGNet's LPIA.

    ::

        A = softmax(W_q H_q (W_k H_k)^T / √d) W_v H_k                      (B, S_q, d)
        g = LeakyReLU(norm(Conv1d_1x1(mean_s A)))                          (B, d)
        y = LN(H_q + broadcast(g) + W_2 Dropout(GELU(W_1 A)))              (B, S_q, d)

    The mean runs over the query's real positions. One head; keys have no bias, since the softmax would cancel it. Our
    choices: LayerNorm for ``norm`` (the paper's BatchNorm is selectable and, for one training sample, uses its running
    statistics), and ``A`` in place of the feed-forward layer where that is switched off.
    """

    def __init__(self, config: LPGNetConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d)
        # Batch normalisation would cancel the bias of the convolution before it.
        self.compress = nn.Conv1d(d, d, kernel_size=1, bias=config.norm == "layer")
        self.norm_context: nn.LayerNorm | nn.BatchNorm1d = nn.LayerNorm(d) if config.norm == "layer" else nn.BatchNorm1d(d)
        self.feed_forward: nn.Sequential | None = None
        if config.use_feed_forward:
            width = config.feed_forward_factor * d
            self.feed_forward = nn.Sequential(
                nn.Linear(d, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, d)
            )
        self.norm = nn.LayerNorm(d)

    def forward(self, query: Tensor, query_mask: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
        """``(B, S_q, d), (B, S_q), (B, S_k, d), (B, S_k) -> (B, S_q, d)``."""
        attended, _ = attend(self.query(query), self.key(key), self.value(key), key_mask)
        pooled = masked_mean(attended, query_mask)
        context = F.leaky_relu(self.normalise(self.compress(pooled.unsqueeze(-1)).squeeze(-1)))
        refined = attended if self.feed_forward is None else self.feed_forward(attended)
        output: Tensor = self.norm(query + context.unsqueeze(1) + refined)
        return output

    def normalise(self, context: Tensor) -> Tensor:
        """``(B, d) -> (B, d)``."""
        norm = self.norm_context
        if isinstance(norm, nn.BatchNorm1d) and self.training and context.shape[0] == 1:
            return F.batch_norm(context, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        normalised: Tensor = norm(context)
        return normalised


@dataclass
class Stream:
    """One modality as the attentions see it: ``values (B, S, d)``, real queries and real keys ``(B, S)``."""

    values: Tensor
    query_mask: Tensor
    key_mask: Tensor


class LPGNetAdapter(FusionAdapter):
    """Parallel attention and dual-gated fusion without speakers, LPGNet (He and Xiao).

    ::

        H_m   = Conv1d_1x1(X_m)                                            (B, S_m, d)
        P_mn  = InteractionPath(H_m, H_n), all ordered pairs and n = m     (B, S_m, d)
        F_m   = W_m [P_mn ⊙ σ(W_mn P_mn)]_n                                (B, S_m, d)
        h_m   = F_m at the target utterance                                (B, d)
        z     = softmax over modalities (W_z h_m), per dimension           (B, M, d)
        h     = Σ_m z_m ⊙ h_m                                              (B, d)
        distill_ce = Σ_m CE(y, W'_m h_m)
        distill_kl = Σ_m T² KL(softmax(teacher / T) ‖ softmax(W'_m h_m / T)), the teacher detached

    With text and audio these are the paper's four attentions; vision makes them nine (our extension). At ``level:
    utterance`` ``X_m`` holds the utterance vectors of the window, and the pooled sequence as a window of one where no
    context is given; at ``level: frame`` it holds the frames of the target and ``h_m`` is their masked mean (our choice).
    ``context.speakers`` is never read, nor is the order of utterances, except for which one is the target. At ``level:
    frame`` nothing knows the positions of frames: reversing a sequence in time changes nothing (where ``max_frames`` cuts
    none).

    The teacher is the fused vector's own classifier and regressor: the auxiliary head, or without one a head that exists
    for training alone (our choice, since a language model's answer cannot be the teacher). The task loss ``ce`` or ``l1``
    is the teacher's. For regression ``distill_ce`` is the L1 distance to the truth and ``distill_kl`` the squared
    distance to the teacher's score; with both kinds of task each loss is the sum of its two means. A student learns from
    samples that have its modality and the target.

    Diagnostics: ``multimodal_gate`` z averaged over dimensions (B, M) in the order of ``config.modalities``;
    ``unimodal_gate``, each gate at the target (averaged over frames) and over dimensions, (B, paths) in the order of
    :attr:`paths`.
    """

    name: ClassVar[str] = "lpgnet"
    config_class: ClassVar[type[AdapterConfig]] = LPGNetConfig
    default_loss_weights: ClassVar[dict[str, float]] = {"ce": 1.5, "l1": 1.5, "distill_ce": 1.0, "distill_kl": 0.3}
    uses_context: ClassVar[bool] = True
    example_options: ClassVar[tuple[dict[str, bool | int | str], ...]] = ({}, {"level": "frame"})
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o inter": {"use_inter": False},
        "w/o intra": {"use_intra": False},
        "w/o FFN": {"use_feed_forward": False},
        "w/o dual gate": {"use_unimodal_gate": False, "use_multimodal_gate": False},
        "w/o distillation": {"use_distillation": False},
    }
    config: LPGNetConfig

    @property
    def frame_modalities(self) -> tuple[str, ...]:
        return self.config.modalities if self.config.level == "frame" else ()

    @property
    def step_limit(self) -> int | None:
        return self.config.max_frames if self.config.level == "frame" else 0

    @property
    def paths(self) -> tuple[tuple[str, str], ...]:
        """Pairs (query modality, key modality) that attend, grouped by query."""
        return tuple(
            (query, key)
            for query in self.config.modalities
            for key in self.config.modalities
            if (self.config.use_intra if query == key else self.config.use_inter)
        )

    def build(self) -> None:
        config, d = self.config, self.config.hidden_size
        check_options(config)
        if not self.paths:
            raise ValueError(
                f"LPGNet has no attention left: use_intra={config.use_intra}, use_inter={config.use_inter} "
                f"with {', '.join(config.modalities)}"
            )
        self.utterances = nn.ModuleDict()
        if config.level == "utterance":
            self.utterances.update({m: UtteranceProjection(s, d, config.dropout) for m, s in vector_sizes(config).items()})
        self.interactions = nn.ModuleDict({f"{q}_{k}": InteractionPath(config) for q, k in self.paths})
        self.unimodal_gates = nn.ModuleDict()
        if config.use_unimodal_gate:
            self.unimodal_gates.update({f"{q}_{k}": nn.Linear(d, d, bias=False) for q, k in self.paths})
        sources = len(self.paths) // len(config.modalities)
        self.joins = nn.ModuleDict({m: nn.Linear(sources * d, d) for m in config.modalities})
        # One modality has nothing to be weighed against.
        gated = config.use_multimodal_gate and len(config.modalities) > 1
        self.multimodal_gate = nn.Linear(d, d, bias=False) if gated else None
        self.students = nn.ModuleDict()
        self.teacher: AuxiliaryHead | None = None
        if config.use_distillation and (config.num_classes or config.score_range is not None):
            head = (config.num_classes, config.score_range, config.dropout)
            self.students.update({m: AuxiliaryHead(d, *head) for m in config.modalities})
            if not config.auxiliary_head:
                self.teacher = AuxiliaryHead(self.output_size, *head)

    def training_only_parameters(self) -> tuple[str, ...]:
        """The students, and the teacher where it is not the auxiliary head."""
        return ("students.", "teacher.") if self.teacher is not None else ("students.",)

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        streams, target = self.read(inputs)
        gates: list[Tensor] = []
        modal: dict[str, Tensor] = {}
        for query, stream in streams.items():
            gated: list[Tensor] = []
            for key in (k for q, k in self.paths if q == query):
                other = streams[key]
                path = self.interactions[f"{query}_{key}"](stream.values, stream.query_mask, other.values, other.key_mask)
                if f"{query}_{key}" in self.unimodal_gates:
                    gate = torch.sigmoid(self.unimodal_gates[f"{query}_{key}"](path))
                    gates.append(take(gate, stream.query_mask, target).mean(dim=-1))
                    path = path * gate
                gated.append(path)
            modal[query] = take(self.joins[query](torch.cat(gated, dim=-1)), stream.query_mask, target)
        stacked = torch.stack(list(modal.values()), dim=1)  # (B, M, d)
        weights = self.weigh(stacked)
        fused = (weights * stacked).sum(dim=1)
        diagnostics = {"multimodal_gate": weights.mean(dim=-1)}
        if gates:
            diagnostics["unimodal_gate"] = torch.stack(gates, dim=1)
        output = self.head(fused) if self.head is not None else HeadOutput(None, None)
        losses: dict[str, Tensor] = {}
        if inputs.targets is not None:
            shown = {m: take(s.key_mask.unsqueeze(-1).to(fused.dtype), s.query_mask, target) > 0 for m, s in streams.items()}
            teacher = self.teacher(fused) if self.teacher is not None else output
            losses = self.losses(teacher, modal, {m: s.squeeze(-1) for m, s in shown.items()}, inputs.targets)
        return FusedFeatures(fused, losses, diagnostics, output.logits, output.scores)

    def read(self, inputs: FusionInputs) -> tuple[dict[str, Stream], Tensor | None]:
        """``H_m`` of every modality, and the target's place ``(B,)``, None at frame level."""
        if self.config.level == "frame":
            return {m: self.frames(inputs, m) for m in self.config.modalities}, None
        window = utterance_window(inputs, vector_sizes(self.config))
        streams = {
            m: Stream(self.utterances[m](window.vectors[m], window.present[m]), window.mask, window.present[m])
            for m in self.config.modalities
        }
        return streams, window.target

    def frames(self, inputs: FusionInputs, modality: str) -> Stream:
        """The first ``max_frames`` real frames of a modality, ``(B, S, d)``; a missing one is its stand-in."""
        values, mask = self.project(inputs, modality)
        if values.shape[1] > self.config.max_frames:
            # Attention has no positions, so frames may move; padding before real frames must not use up the length.
            order = real_steps_first(mask)[:, : self.config.max_frames]
            values, mask = values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1])), mask.gather(1, order)
        sequence = inputs.sequence(modality)
        keys = torch.zeros_like(mask) if sequence is None else mask & sequence.present[:, None]
        return Stream(values, mask, keys)

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        found = [DiagnosticInfo("multimodal_gate", "Multimodal gate", self.config.modalities, "weights", "modality weights")]
        if self.unimodal_gates:
            paths = tuple(f"{query}←{key}" for query, key in self.paths)
            found.append(DiagnosticInfo("unimodal_gate", "Gates of the attention paths", paths, "gates"))
        return found

    def weigh(self, stacked: Tensor) -> Tensor:
        """``z``: ``(B, M, d) -> (B, M, d)``, sums to 1 over modalities; equal without the gate."""
        if self.multimodal_gate is None:
            return torch.full_like(stacked, 1 / stacked.shape[1])
        return torch.softmax(self.multimodal_gate(stacked), dim=1)

    def losses(
        self, teacher: HeadOutput, modal: dict[str, Tensor], shown: dict[str, Tensor], targets: FusionTargets
    ) -> dict[str, Tensor]:
        """Task losses of the teacher and distillation losses of the students, means over known targets.

        Args:
            modal: ``{modality: h_m (B, d)}``. shown: ``{modality: (B,) bool}``, True where the target has the modality.
        """
        unit = score_unit(self.config.score_range)
        losses = AuxiliaryHead.losses(teacher, targets.classes, targets.scores, unit)
        hard: list[Tensor] = []
        soft: list[Tensor] = []
        for modality, student in self.students.items():
            output: HeadOutput = student(modal[modality])
            if output.logits is not None and teacher.logits is not None and targets.classes is not None:
                classes = targets.classes.masked_fill(~shown[modality], IGNORE_CLASS)
                divergence = distillation_divergence(teacher.logits.detach(), output.logits, self.config.temperature)
                hard.append(class_loss(output.logits, classes))
                soft.append(known_mean(divergence, classes != IGNORE_CLASS))
            if output.scores is not None and teacher.scores is not None and targets.scores is not None:
                scores = targets.scores.masked_fill(~shown[modality], float("nan"))
                hard.append(score_loss(output.scores, scores, unit))
                distance = (output.scores - teacher.scores.detach()) / unit
                soft.append(known_mean(distance**2, ~torch.isnan(scores)))
        if hard:
            losses |= {"distill_ce": torch.stack(hard).sum(), "distill_kl": torch.stack(soft).sum()}
        return losses


def check_options(config: LPGNetConfig) -> None:
    """Raise ``ValueError`` for options that cannot work, naming the option."""
    if config.level not in ("utterance", "frame"):
        raise ValueError(f"level is {config.level!r}; choose utterance or frame")
    if config.norm not in ("layer", "batch"):
        raise ValueError(f"norm is {config.norm!r}; choose layer or batch")
    if config.temperature <= 0:
        raise ValueError(f"temperature is {config.temperature}; it must be above 0")
    if config.max_frames < 1 or config.feed_forward_factor < 1:
        raise ValueError("max_frames and feed_forward_factor must be at least 1")


def take(values: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
    """The target's row of ``(B, S, d)``, or without a target the mean over real rows: ``(B, d)``."""
    if target is None:
        return masked_mean(values, mask)
    return values.gather(1, target[:, None, None].expand(-1, 1, values.shape[-1])).squeeze(1)


def distillation_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) ‖ softmax(student / T))``: ``(B, C), (B, C) -> (B,)``, at least in float32."""
    if student.dtype in (torch.bfloat16, torch.float16):
        teacher, student = teacher.float(), student.float()
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of ``(B,)`` where known; a zero that keeps the graph when nothing is."""
    return values.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)
