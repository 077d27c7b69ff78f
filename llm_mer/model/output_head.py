"""Log-probabilities of answer tokens with the output head in float32, whatever type the layers compute in.

In bfloat16 a logit between 16 and 32 is a multiple of 0.125, so a head computed in it moves probabilities by several per
cent. Products of two bfloat16 numbers are exact in float32: only the hidden state's own rounding is left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_ELEMENTS = 2**26
"""Logits, or weights of the head, held at once (256 MB in float32); longer work is cut into parts of the vocabulary."""


def reads_in_float32(head: nn.Module) -> bool:
    """Whether the head's weights can be read and multiplied in float32 here.

    They cannot where the head is no plain linear layer (quantised, or wrapped by PEFT), or where its weights are not all
    on this process's device: sharded by ZeRO-3 (``ds_id``) or FSDP (``device_mesh``), or left on the disk by accelerate.
    """
    if type(head) is not nn.Linear:
        return False
    weight = head.weight
    sharded = hasattr(weight, "ds_id") or hasattr(weight, "device_mesh")
    return weight.is_floating_point() and weight.itemsize >= 2 and not sharded and not weight.is_meta


def next_token_log_probs(head: nn.Module, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
    """``log softmax(W h_node + b)[token]``: ``(B, E)`` float32 of hidden states ``(B, N, H)``, without gradient.

    Computed in float32 (float64 of a model in it), autocast or not. Weights of a lower type are widened part by part of the
    vocabulary. A head that :func:`reads_in_float32` refuses computes its logits itself; these are normalised in float32.

    Args:
        head: ``W (V, H)`` and ``b (V,)``. nodes: ``(E,)`` which of the ``N`` states each token follows. tokens: ``(E,)``.
    """
    if not reads_in_float32(head):
        return _of_own_logits(head, hidden, nodes, tokens)
    weight: Tensor = head.weight  # type: ignore[assignment]  # a plain linear layer
    bias: Tensor | None = head.bias  # type: ignore[assignment]
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    batch, positions, width = hidden.shape
    vocabulary = weight.shape[0]
    size = max(1, CHUNK_ELEMENTS // max(batch * positions, width, 1))
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(dtype)
        normaliser = hidden.new_full((batch, positions), -torch.inf)
        wanted = hidden.new_zeros((batch, len(tokens)))
        for start in range(0, vocabulary, size):
            part = slice(start, min(start + size, vocabulary))
            logits = F.linear(hidden, weight[part].to(dtype), None if bias is None else bias[part].to(dtype))  # (B, N, v)
            # Without asking which tokens are in this part, for which the host would wait.
            here = (tokens >= part.start) & (tokens < part.stop)
            found = logits[:, nodes, (tokens - part.start).clamp(0, part.stop - part.start - 1)]
            wanted = torch.where(here, found, wanted)
            normaliser = torch.logaddexp(normaliser, _logsumexp_in_place(logits))
    return (wanted - normaliser[:, nodes]).float()


def _of_own_logits(head: nn.Module, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
    """The same of the logits that the head itself gives, of some samples at a time."""
    vocabulary = int(getattr(head, "out_features", 1))
    parts = []
    for rows in hidden.split(max(1, CHUNK_ELEMENTS // max(vocabulary * hidden.shape[1], 1))):
        logits = head(rows).float()
        wanted = logits[:, nodes, tokens]  # a copy
        parts.append(wanted - _logsumexp_in_place(logits)[:, nodes])
    return torch.cat(parts)


def _logsumexp_in_place(logits: Tensor) -> Tensor:
    """``log Σ_v exp(logits)`` over the last axis; the logits are used up.

    A second tensor as large would take as long to allocate as this one takes to compute.
    """
    highest = logits.amax(dim=-1, keepdim=True)
    return logits.sub_(highest).exp_().sum(dim=-1).log_() + highest.squeeze(-1)
