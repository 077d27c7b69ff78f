"""Building blocks the adapters share: masked attention and pooling, projections, pseudo tokens, the auxiliary head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_on_device(holds: Tensor, message: str) -> bool:
    """Whether a scalar bool tensor is true, where that can be read; elsewhere its device checks it.

    Reading a number of an accelerator makes the host wait for all the work queued before it, once a step. There the device
    asserts it by itself and stops with ``message``, and True is returned at once.
    """
    if holds.device.type == "cpu":
        return bool(holds)
    torch._assert_async(holds, message)
    return True


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real steps: ``(B, T, D), (B, T) -> (B, D)``; zeros for a row without a real step."""
    weights = mask.to(values.dtype).unsqueeze(-1)  # (B, T, 1)
    total = (values.masked_fill(~mask.bool().unsqueeze(-1), 0.0) * weights).sum(dim=1)
    return total / weights.sum(dim=1).clamp(min=1.0)


def masked_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the True entries of ``mask`` (broadcastable); a slice with none is all zeros, not NaN."""
    mask = mask.bool().expand_as(scores)
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=dim)
    return weights.masked_fill(~mask, 0.0)


def real_steps_first(mask: Tensor) -> Tensor:
    """Indices ``(B, T)`` that put the True steps of ``mask (B, T)`` first and keep them in their order."""
    return torch.argsort((~mask).to(torch.int8), dim=1, stable=True)


def real_steps_to_front(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Real steps to the front in their order, zeros behind: ``(B, T, d), (B, T)`` to the same shapes."""
    order = real_steps_first(mask)
    mask = mask.gather(1, order)
    return values.gather(1, order.unsqueeze(-1).expand_as(values)).masked_fill(~mask.unsqueeze(-1), 0.0), mask


def attend(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention ``softmax(Q K^T / sqrt(d)) V`` with masked keys.

    Args:
        query: ``(..., Q, d)``. key, value: ``(..., S, d)``. key_mask: ``(..., S)`` bool, True at real steps.

    Returns:
        The output ``(..., Q, d)`` and the attention map ``(..., Q, S)``; both zero where no key is real.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = masked_softmax(scores.float() if scores.dtype == torch.bfloat16 else scores, key_mask.unsqueeze(-2))
    weights = weights.to(value.dtype)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention ``Attn(Q, K, V)`` whose rows without a real key are zero before the output bias.

    Shapes: query ``(B, Q, d)``, key and value ``(B, S, d)``, ``key_mask (B, S)`` → ``(B, Q, d)``. The output of a row
    whose keys are all masked is exactly zero, so a residual passes the query through unchanged.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:  # (B, S, d) -> (B, heads, S, d / heads)
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        mixed, _ = attend(split(self.query(query)), split(self.key(key)), split(self.value(value)), key_mask[:, None])
        output = self.output(mixed.transpose(1, 2).flatten(2))
        output = output.masked_fill(~key_mask.bool().any(dim=1)[:, None, None], 0.0)
        return self.dropout(output)


class ModalityProjection(nn.Module):
    """``D_m → d`` with a learned stand-in for a missing modality.

    A sample whose mask is all False becomes one real step, the stand-in; the values it carried are never read. Padded
    values are zeroed before the first multiplication, so NaN in them cannot spread.
    """

    def __init__(self, feature_size: int, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.missing = nn.Parameter(torch.randn(hidden_size) / math.sqrt(hidden_size))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, T, D_m), (B, T) -> (B, max(T, 1), d), (B, max(T, 1))``."""
        mask = mask.bool()
        if features.shape[1] == 0:
            return self.stand_in(features.shape[0])
        clean = features.masked_fill(~mask.unsqueeze(-1), 0.0).to(self.linear.weight.dtype)
        projected = self.dropout(self.norm(self.linear(clean)))
        absent = ~mask.any(dim=1)  # (B,)
        first = torch.zeros_like(mask)
        first[:, 0] = absent
        projected = torch.where(first.unsqueeze(-1), self.missing.to(projected.dtype), projected)
        mask = mask | first
        return projected.masked_fill(~mask.unsqueeze(-1), 0.0), mask

    def stand_in(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The stand-in for every sample: ``(B, 1, d)`` and an all-True mask."""
        features = self.missing.expand(batch_size, 1, -1)
        return features, torch.ones(batch_size, 1, dtype=torch.bool, device=features.device)


class PseudoTokenProjection(nn.Module):
    """One fused vector to ``K`` pseudo tokens of the backbone's size, at the scale of its token embeddings.

    ``T_pseudo = scale · LN(expand(f))``. ``repeat`` projects once and repeats (EGMF, arXiv 2601.07565); ``linear`` is a
    learned expansion so the tokens can differ (our choice). ``scale`` is learned and starts at the mean row norm of the
    backbone's embedding table over ``sqrt(H)``, so each token starts at that norm (our choice).

    Shapes: ``(B, d) -> (B, K, H)``.
    """

    def __init__(self, input_size: int, backbone_size: int, num_tokens: int, expansion: str, embedding_norm: float) -> None:
        super().__init__()
        if expansion not in ("linear", "repeat"):
            raise ValueError(f"token_expansion is {expansion!r}; choose linear, repeat or labels")
        if backbone_size <= 0:
            raise ValueError("backbone_size must be set when pseudo tokens are emitted")
        self.num_tokens = num_tokens
        self.backbone_size = backbone_size
        self.expansion = expansion
        self.linear = nn.Linear(input_size, backbone_size * (num_tokens if expansion == "linear" else 1))
        self.norm = nn.LayerNorm(backbone_size, elementwise_affine=False)
        # One dimension and not none: DeepSpeed cannot broadcast a parameter without dimensions.
        self.scale = nn.Parameter(torch.full((1,), float(embedding_norm) / math.sqrt(backbone_size)))

    def forward(self, fused: Tensor) -> Tensor:
        tokens = self.linear(fused).unflatten(-1, (-1, self.backbone_size))  # (B, K or 1, H)
        tokens = self.norm(tokens) * self.scale
        return tokens.expand(-1, self.num_tokens, -1) if self.expansion == "repeat" else tokens


@dataclass
class HeadOutput:
    """``logits (B, C)`` or None, ``scores (B,)`` or None."""

    logits: Tensor | None
    scores: Tensor | None


class AuxiliaryHead(nn.Module):
    """The adapter's own classifier and regressor: ``logits = W_c h``, ``score = mid + half-range · (w_s h)``.

    Scores are in the unit of the task and not clipped; a fresh head predicts near the middle of the range. Its loss is in
    units of :func:`score_unit`.
    """

    def __init__(
        self, input_size: int, num_classes: int, score_range: tuple[float, float] | None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not num_classes and score_range is None:
            raise ValueError("an auxiliary head needs a classification or a regression task")
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(input_size, num_classes) if num_classes else None
        self.regressor = nn.Linear(input_size, 1) if score_range is not None else None
        low, high = score_range if score_range is not None else (-1.0, 1.0)
        self.middle, self.half_range = (low + high) / 2, (high - low) / 2

    def forward(self, fused: Tensor) -> HeadOutput:
        fused = self.dropout(fused)
        logits = self.classifier(fused) if self.classifier is not None else None
        scores = None
        if self.regressor is not None:
            scores = self.middle + self.half_range * self.regressor(fused).squeeze(-1)
        return HeadOutput(logits, scores)

    @staticmethod
    def losses(output: HeadOutput, classes: Tensor | None, scores: Tensor | None, unit: float = 1.0) -> dict[str, Tensor]:
        """``ce`` over samples with a class, ``l1`` over samples with a score; each zero (with a graph) when none has.

        ``unit`` is that of the scores' losses, :func:`score_unit`.
        """
        losses: dict[str, Tensor] = {}
        if output.logits is not None and classes is not None:
            losses["ce"] = class_loss(output.logits, classes)
        if output.scores is not None and scores is not None:
            losses["l1"] = score_loss(output.scores, scores, unit)
        return losses


PUBLISHED_RANGES: tuple[tuple[float, float], ...] = ((-3.0, 3.0), (-1.0, 1.0))
"""Of CMU-MOSI and MOSEI, and of CH-SIMS: losses of these scores are in points of their own scale, as published."""


def score_unit(score_range: tuple[float, float] | None) -> float:
    """What a loss of scores is measured in: 1 point on a published range, else half of the range's width.

    A target ``y`` of any other range is thereby trained as ``2 (y - low) / (high - low) - 1`` in [-1, 1], so that no task
    drowns another by the numbers it is written in.
    """
    if score_range is None or tuple(score_range) in PUBLISHED_RANGES:
        return 1.0
    low, high = score_range
    return (high - low) / 2


def class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy over samples whose class is not -100; a zero that keeps the graph when there is none."""
    # Not the mean of cross_entropy, which is NaN over none; how many there are is never read on the host.
    total = F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, classes, reduction="sum")
    return total / (classes != -100).sum().clamp(min=1)


def score_loss(predicted: Tensor, scores: Tensor, unit: float = 1.0) -> Tensor:
    """Mean absolute error over samples whose score is not NaN, in ``unit``; a zero that keeps the graph without any."""
    known = ~torch.isnan(scores)
    distance = (predicted - torch.where(known, scores.to(predicted.dtype), predicted.detach())).abs()
    return distance.sum() / known.sum().clamp(min=1) / unit
