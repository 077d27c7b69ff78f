"""LSGMER: label embeddings as anchors of attention and of the fused vector (arXiv 2504.05158).

Label embeddings query every modality, the answer gates its steps, and the classifier must agree with the similarity
between the fused vector and the label embeddings. A moving average once an epoch keeps the anchors steady.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_mer.adapters.base import IGNORE_CLASS, AdapterConfig, FusedFeatures, FusionAdapter, FusionInputs, FusionTargets
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.adapters.layers import MultiHeadAttention, masked_mean, score_loss, score_unit

DOMINANT_MODALITY = 0.95
COLLAPSED_COSINE = 0.9


@dataclass
class LSGMERConfig(AdapterConfig):
    """Options of LSGMER; LSMA and JOO are the paper's ablations, the other switches are ours."""

    use_label_enhancement: bool = field(default=True, metadata={"help": "label signal enhancement (the paper's LSMA)"})
    use_joint_optimisation: bool = field(
        default=True, metadata={"help": "joint objective optimisation (the paper's JOO): the apc loss"}
    )
    use_moving_average: bool = field(default=True, metadata={"help": "average the label embeddings once an epoch"})
    use_cross_modal: bool = field(default=True, metadata={"help": "let each modality attend to the others first"})
    use_dynamic_fusion: bool = field(default=True, metadata={"help": "weigh modalities per sample; off: their mean"})
    label_gate_vision: bool = field(default=True, metadata={"help": "let label enhancement gate vision too"})
    label_init: str = field(
        default="random",
        metadata={
            "help": "start of the class embeddings: random, or the backbone's token embeddings of the label words",
            "choices": ["random", "backbone"],
        },
    )
    moving_average_alpha: float = field(default=0.99, metadata={"help": "share of the old label embeddings an epoch keeps"})
    temperature: float = field(default=0.1, metadata={"help": "temperature τ of the similarity distribution q"})
    num_score_bins: int = field(default=7, metadata={"help": "ordinal bins over the score range of a regression task"})


class LabelSignalEnhancement(nn.Module):
    """Label embeddings query one modality; what they find gates its steps.

    ::

        A    = softmax_t(L K^T / √d),  K = W_k H_1,  V = W_v H_1           (B, C, T)
        Z    = A V                                                         (B, C, d)
        Ā    = A / Σ_c A,  H_2[t] = Σ_c Ā[c, t] Z[c]                       (B, T, d)
        w    = σ(H_2),  H = w ⊙ H_0 + H_2                                  (B, T, d)

    The paper gives ``Z``, ``w`` and ``H`` but not how a signal per label becomes one per step; ``Ā`` is our choice. The
    keys have no bias: it would add the same to every step of a label's scores and never learn.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, labels: Tensor, h_0: Tensor, h_1: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(C, d), (B, T, d), (B, T, d), (B, T)`` to ``H``, ``w`` (both ``(B, T, d)``) and ``Ā (B, C, T)``."""
        real = mask.unsqueeze(1)  # (B, 1, T)
        scores = precise(labels @ self.key(h_1).transpose(1, 2) / math.sqrt(labels.shape[-1]))  # (B, C, T)
        log_attention = F.log_softmax(scores.masked_fill(~real, torch.finfo(scores.dtype).min), dim=-1)
        attention = log_attention.exp().masked_fill(~real, 0.0)
        values = self.value(h_1)
        signal = attention.to(values.dtype) @ values  # Z, (B, C, d)
        # Normalised in the logarithm: a step that no label attends to would be 0 / 0 in the quotient.
        share = torch.softmax(log_attention.masked_fill(~real, 0.0), dim=1).masked_fill(~real, 0.0)
        h_2 = share.to(signal.dtype).transpose(1, 2) @ signal
        gate = torch.sigmoid(h_2)
        return gate * h_0 + h_2, gate, share


class LSGMERAdapter(FusionAdapter):
    """Label-signal-guided fusion, arXiv 2504.05158.

    ::

        H_m1 = H_m0 + CrossAttn(H_m0, H_others, H_others)                  (B, T_m, d)
        H_m  = LabelSignalEnhancement(L, H_m0, H_m1),  h_m = pool(H_m)     (B, d)
        g    = softmax(W_g [h_m]_m),  h = Σ_m g_m h_m                      (B, M), (B, d)
        p    = softmax(W h),  q = softmax(cos(h, L) / τ)                   (B, C)
        ce   = -log p[y],  apc = JSD(p ‖ q)
        L_t  = α L_{t-1} + (1 - α) L'_{t-1}   once an epoch, L' the trained value

    A score range has ordinal anchors of its own beside those of the classes: ``ce`` is over bins, the score is the
    expectation of the bin centres under ``p``. Our choices: vision, ``τ``, the weight 1 of ``apc``, a score between two
    centres shares its target linearly (so that the expectation can be exact), bins start along a half circle (near bins
    alike, the ends opposed), and class words reach size ``d`` by a rotation that keeps their inner products.

    Nothing here knows the positions of steps: reversing a sequence in time changes nothing.

    ``ce`` and ``apc`` are means over the known targets of a batch, classes and scores alike; a sample without a target of
    one kind adds nothing for that kind. The classifier exists with and without ``auxiliary_head``; that option adds
    ``l1`` on the expected score.

    Diagnostics (``M`` gated modalities, ``A`` anchors, classes first): ``label_gate`` mean w (B, M), ``label_focus`` (B, M)
    mean over steps of the distance ``½ Σ_c |Ā[c, t] - 1/A|`` to labels that all read alike, ``fusion_weights`` g (B, all
    modalities), ``label_similarity`` cos (B, A).
    """

    name: ClassVar[str] = "lsgmer"
    has_classifier: ClassVar[bool] = True
    config_class: ClassVar[type[AdapterConfig]] = LSGMERConfig
    default_loss_weights: ClassVar[dict[str, float]] = {"ce": 1.0, "apc": 1.0, "l1": 1.0}
    ablations: ClassVar[dict[str, dict[str, bool | str]]] = {
        "w/o LSMA": {"use_label_enhancement": False},
        "w/o JOO": {"use_joint_optimisation": False},
        "w/o LSMA and JOO": {"use_label_enhancement": False, "use_joint_optimisation": False},
        "w/o moving average": {"use_moving_average": False},
        "w/o cross-modal": {"use_cross_modal": False},
        "w/o dynamic fusion": {"use_dynamic_fusion": False},
        "vision not label-gated": {"label_gate_vision": False},
    }
    config: LSGMERConfig

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.head = None  # the classifiers of build() are this adapter's head; a second one would never learn

    def build(self) -> None:
        config, d = self.config, self.config.hidden_size
        check_options(config)
        modalities = config.modalities
        self.cross_attends = nn.ModuleDict()
        if config.use_cross_modal and len(modalities) > 1:
            self.cross_attends.update({m: MultiHeadAttention(d, config.num_heads, config.dropout) for m in modalities})
        gated = [m for m in modalities if m != "vision" or config.label_gate_vision]
        self.enhancements = nn.ModuleDict(
            {m: LabelSignalEnhancement(d) for m in gated if config.use_label_enhancement},
        )
        self.fusion_gate = None
        if config.use_dynamic_fusion and len(modalities) > 1:
            self.fusion_gate = nn.Linear(len(modalities) * d, len(modalities))
        self.classifier = nn.Linear(d, config.num_classes) if config.num_classes else None
        self.bin_classifier = None
        anchors = [torch.randn(config.num_classes, d)]
        if config.score_range is not None:
            self.bin_classifier = nn.Linear(d, config.num_score_bins)
            anchors.append(ordinal_anchors(config.num_score_bins, d))
        self.label_embeddings: nn.Parameter | None = None
        if len(self.enhancements) or config.use_joint_optimisation:
            self.label_embeddings = nn.Parameter(torch.cat(anchors))  # L, (A, d)
            # L_{t-1} outlives the epoch in the checkpoint: a resumed run averages with the same past.
            self.register_buffer("previous_labels", self.label_embeddings.detach().clone())

    def fuse(self, inputs: FusionInputs) -> FusedFeatures:
        h_0: dict[str, tuple[Tensor, Tensor]] = {m: self.project(inputs, m) for m in self.config.modalities}
        pooled, gates, focus = [], [], []
        for modality, (values, mask) in h_0.items():
            enhanced = values
            if modality in self.cross_attends:
                others = torch.cat([h_0[m][0] for m in h_0 if m != modality], dim=1)
                others_mask = torch.cat([h_0[m][1] for m in h_0 if m != modality], dim=1)
                enhanced = values + self.cross_attends[modality](values, others, others, others_mask)
            if modality in self.enhancements:
                enhanced, gate, share = self.enhancements[modality](self.label_embeddings, values, enhanced, mask)
                gates.append(masked_mean(gate, mask).mean(dim=-1))
                distance = (share - 1 / share.shape[1]).abs().sum(dim=1) / 2  # (B, T); not the mean share, uniform by design
                focus.append(masked_mean(distance.unsqueeze(-1), mask).squeeze(-1))
            pooled.append(masked_mean(enhanced, mask))
        stacked = torch.stack(pooled, dim=1)  # (B, M, d)
        weights = self.weigh(stacked)
        fused = (weights.unsqueeze(-1) * stacked).sum(dim=1)  # (B, d)
        diagnostics = {"fusion_weights": weights}
        if gates:
            diagnostics |= {"label_gate": torch.stack(gates, dim=1), "label_focus": torch.stack(focus, dim=1)}
        logits = self.classifier(fused) if self.classifier is not None else None
        bin_logits = self.bin_classifier(fused) if self.bin_classifier is not None else None
        cosine = None
        if self.label_embeddings is not None:
            cosine = F.cosine_similarity(precise(fused).unsqueeze(1), precise(self.label_embeddings), dim=-1)  # (B, A)
            diagnostics["label_similarity"] = cosine
        scores = None
        if bin_logits is not None:
            distribution = torch.softmax(precise(bin_logits), dim=-1)
            assert self.config.score_range is not None
            # Not a buffer: one that is not saved holds anything after transformers' loading on the meta device.
            centres = torch.linspace(*self.config.score_range, distribution.shape[-1]).to(distribution)
            scores = (distribution * centres).sum(dim=-1)
        losses: dict[str, Tensor] = {}
        if inputs.targets is not None:
            losses = self.losses(logits, bin_logits, cosine, inputs.targets)
            if self.config.auxiliary_head and scores is not None and inputs.targets.scores is not None:
                losses["l1"] = score_loss(scores, inputs.targets.scores, score_unit(self.config.score_range))
        return FusedFeatures(fused, losses, diagnostics, logits, scores)

    def weigh(self, pooled: Tensor) -> Tensor:
        """Fusion weights ``g``: ``(B, M, d) -> (B, M)``; equal without dynamic fusion."""
        if self.fusion_gate is None:
            return pooled.new_full(pooled.shape[:2], 1 / pooled.shape[1])
        weights: Tensor = torch.softmax(self.fusion_gate(pooled.flatten(1)), dim=-1)
        return weights

    def losses(
        self, logits: Tensor | None, bin_logits: Tensor | None, cosine: Tensor | None, targets: FusionTargets
    ) -> dict[str, Tensor]:
        """``ce``, and ``apc`` with joint optimisation; means over known targets, zero with a graph when none is known.

        Args:
            logits: ``(B, C)``. bin_logits: ``(B, bins)``. cosine: ``(B, C + bins)``, classes first.
        """
        parts: list[tuple[Tensor, Tensor, Tensor, int]] = []  # logits, target distribution, known, first anchor
        if logits is not None and targets.classes is not None:
            known = targets.classes != IGNORE_CLASS
            # Not F.one_hot, which reads the classes on the host.
            classes = targets.classes.masked_fill(~known, 0).unsqueeze(-1)
            one_hot = (classes == torch.arange(logits.shape[-1], device=classes.device)).long()
            parts.append((precise(logits), one_hot, known, 0))
        if bin_logits is not None and targets.scores is not None:
            assert self.config.score_range is not None
            known = ~torch.isnan(targets.scores)
            shared = bin_targets(targets.scores.nan_to_num(), bin_logits.shape[-1], self.config.score_range)
            parts.append((precise(bin_logits), shared, known, self.config.num_classes))
        if not parts:
            return {}
        ce: list[Tensor] = []
        apc: list[Tensor] = []
        for part_logits, target, known, first in parts:
            log_p = F.log_softmax(part_logits, dim=-1)
            ce.append(-(target.to(log_p.dtype) * log_p).sum(dim=-1) * known)
            if self.config.use_joint_optimisation:
                assert cosine is not None
                anchors = cosine[:, first : first + log_p.shape[-1]]
                log_q = F.log_softmax(anchors / self.config.temperature, dim=-1)
                apc.append(jensen_shannon(log_p, log_q) * known)
        count = torch.stack([known.sum() for _, _, known, _ in parts]).sum().clamp(min=1)
        losses = {"ce": torch.cat(ce).sum() / count}
        if apc:
            losses["apc"] = torch.cat(apc).sum() / count
        return losses

    def loss_count(self, name: str, classes: int, scores: int) -> int | None:
        """``ce`` and ``apc`` are over classes and the bins of scores together."""
        if name in ("ce", "apc"):
            return classes * (self.config.num_classes > 0) + scores * (self.config.score_range is not None)
        return super().loss_count(name, classes, scores)

    def initialise_from_backbone(self, label_vectors: Tensor) -> None:
        """Start the class embeddings at the label words, ``(C, H)``, when ``label_init`` is ``backbone``.

        Their inner products are kept (exactly while ``C <= d``) up to one factor that gives rows the mean norm of a random
        start. The rotation into ``d`` is drawn from a seed of its own, so every rank and every run gets the same one.
        """
        if self.config.label_init != "backbone" or self.label_embeddings is None:
            return
        classes, d = self.config.num_classes, self.config.hidden_size
        if label_vectors.shape[0] != classes:
            raise ValueError(f"{label_vectors.shape[0]} label vectors for {classes} classes")
        left, singular, _ = torch.linalg.svd(label_vectors.detach().double().cpu(), full_matrices=False)
        coordinates = (left * singular)[:, :d]  # (C, r), the label words in their own span
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(d, coordinates.shape[1], generator=generator, dtype=torch.float64)
        rotated = coordinates @ torch.linalg.qr(random)[0].T  # (C, d)
        scaled = rotated * (math.sqrt(d) / rotated.norm(dim=1).mean().clamp(min=1e-12))
        with torch.no_grad():
            self.label_embeddings[:classes] = scaled.to(self.label_embeddings)
            self.get_buffer("previous_labels")[:classes] = self.label_embeddings[:classes]

    @torch.no_grad()
    def on_epoch_end(self) -> dict[str, float]:
        """The moving average ``L_t = α L_{t-1} + (1 - α) L'_{t-1}``, no random numbers, so the same on every rank.

        Returns:
            ``label_drift``: mean over labels of ``‖L_t - L_{t-1}‖``.
        """
        if self.label_embeddings is None:
            return {}
        previous, trained = self.get_buffer("previous_labels"), self.label_embeddings
        alpha = self.config.moving_average_alpha if self.config.use_moving_average else 0.0
        current = alpha * previous + (1 - alpha) * trained
        drift = float((current - previous).float().norm(dim=-1).mean())
        trained.copy_(current)
        previous.copy_(current)
        return {"label_drift": drift}

    def followed_vectors(self) -> dict[str, Tensor]:
        """``label_embeddings`` (C, d) of the classes, ``score_anchors`` (bins, d) of a score range."""
        if self.label_embeddings is None:
            return {}
        classes, anchors = self.label_embeddings.detach().split(
            [self.config.num_classes, len(self.label_embeddings) - self.config.num_classes]
        )
        found = {"label_embeddings": classes, "score_anchors": anchors}
        return {name: vectors for name, vectors in found.items() if len(vectors)}

    def diagnostic_info(self, labels: Sequence[str] = ()) -> list[DiagnosticInfo]:
        found = [DiagnosticInfo("fusion_weights", "Fusion weights", self.config.modalities, "weights", "fusion weights")]
        if self.enhancements:
            gated = tuple(self.enhancements)
            found.append(DiagnosticInfo("label_gate", "Label gates", gated, "gates"))
            found.append(DiagnosticInfo("label_focus", "Label focus", gated))
        if self.label_embeddings is not None:
            classes = self.config.num_classes
            names = list(labels) if len(labels) == classes else [f"class {i + 1}" for i in range(classes)]
            bins = len(self.label_embeddings) - classes
            anchors = [*names, *(f"score bin {i + 1}" for i in range(bins))]
            moved = "How far the label embeddings moved in the epoch (mean Euclidean distance over labels)"
            found.append(DiagnosticInfo("label_similarity", "Similarity to label embeddings", tuple(anchors)))
            found.append(DiagnosticInfo("label_drift", moved, ("mean over labels",), "epoch_value", "label drift"))
            followed = {"label_embeddings": anchors[:classes], "score_anchors": anchors[classes:]}
            found += [DiagnosticInfo(n, n.replace("_", " "), tuple(own), "trajectory") for n, own in followed.items() if own]
        return found

    def warnings_from(self, diagnostics: dict[str, Tensor]) -> list[str]:
        """One modality taking the whole fusion, or two classes whose label embeddings point the same way."""
        warnings = []
        weights = diagnostics.get("fusion_weights")
        if weights is not None and self.fusion_gate is not None:
            mean = weights.mean(dim=0)
            if float(mean.max()) > DOMINANT_MODALITY:
                modality = self.config.modalities[int(mean.argmax())]
                warnings.append(f"LSGMER's fusion reads {modality} alone: mean weight {float(mean.max()):.3f}")
        if self.label_embeddings is not None:  # bins are left out: neighbours are meant to be alike
            unit = F.normalize(self.label_embeddings.detach().float()[: self.config.num_classes], dim=-1)
            cosine = (unit @ unit.T).triu(diagonal=1)
            if cosine.numel() and float(cosine.max()) > COLLAPSED_COSINE:
                i, j = divmod(int(cosine.argmax()), len(unit))
                warnings.append(
                    f"LSGMER's label embeddings of classes {i} and {j} have collapsed: cosine {float(cosine.max()):.3f} > "
                    f"{COLLAPSED_COSINE}"
                )
        return warnings


def check_options(config: LSGMERConfig) -> None:
    """Raise ``ValueError`` for options that cannot work, naming the option."""
    if not config.num_classes and config.score_range is None:
        raise ValueError("LSGMER needs a classification or a regression task: its anchors are labels")
    if config.label_init not in ("random", "backbone"):
        raise ValueError(f"label_init is {config.label_init!r}; choose random or backbone")
    if config.label_init == "backbone" and config.backbone_size <= 0:
        raise ValueError("label_init backbone needs a backbone; choose random")
    if not 0.0 <= config.moving_average_alpha <= 1.0:
        raise ValueError(f"moving_average_alpha is {config.moving_average_alpha}; it must lie in [0, 1]")
    if config.temperature <= 0:
        raise ValueError(f"temperature is {config.temperature}; it must be above 0")
    if config.score_range is not None and config.num_score_bins < 2:
        raise ValueError(f"num_score_bins is {config.num_score_bins}; a score range needs at least 2")


def precise(values: Tensor) -> Tensor:
    """At least float32: logarithms and a temperature of 0.1 magnify the rounding of half precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def ordinal_anchors(bins: int, hidden_size: int) -> Tensor:
    """Anchors along a half circle of radius ``√d``: ``(bins, d)``, cosine falling evenly with the distance of bins."""
    plane = torch.linalg.qr(torch.randn(hidden_size, 2))[0]  # two orthonormal directions, (d, 2)
    angle = torch.linspace(0.0, math.pi, bins).to(plane)  # transformers makes it on the CPU when the rest is on meta
    return math.sqrt(hidden_size) * torch.stack([-angle.cos(), angle.sin()], dim=1) @ plane.T


def bin_targets(scores: Tensor, bins: int, score_range: tuple[float, float]) -> Tensor:
    """Target distribution over bins whose expectation is the score: ``(B,) -> (B, bins)``, at most two bins filled."""
    low, high = score_range
    position = (scores.clamp(low, high) - low) / (high - low) * (bins - 1)
    return (1 - (position.unsqueeze(-1) - torch.arange(bins, device=scores.device)).abs()).clamp(min=0)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``JSD(p ‖ q) = ½ KL(p ‖ m) + ½ KL(q ‖ m)``, ``m = (p + q) / 2``, natural logarithm: ``(..., C) -> (...)``.

    Symmetric, in ``[0, ln 2]``, zero only where the two are equal.
    """
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=-1)
