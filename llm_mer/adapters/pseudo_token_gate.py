"""How much of what an adapter says reaches the language model: a gate that starts closed, and training rows without it.

A backbone that normalises its inputs (RMSNorm in Llama, Qwen and GLM) reads the direction of an embedding, hardly its
length: ``norm(a · p) ≈ norm(p)`` while ``a · rms(p)`` is large beside the root of the norm's epsilon (0.003 for 1e-5).
Scaling a pseudo token down therefore hides little of it, and a token that is exactly zero differs wholly from one that is
small. So a closed gate leaves a token of its own, the same for every utterance, and opens by adding to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PseudoTokenGate(nn.Module):
    """``t = b + tanh(g) · p``: learned constant tokens ``b (K, H)`` and one gate ``g``, which starts at 0.

    At the start the language model reads the same ``K`` vectors whatever the utterance, a soft prompt at the norm of its
    own embeddings, and so only the words tell. There ``∂L/∂g = ⟨∂L/∂t, p⟩`` is not zero, while the gradient of ``p`` is
    ``tanh(0) · ∂L/∂t = 0``: the gate opens first, and only then does the language model's loss shape the features. The
    gate of cross-attention in Flamingo (Alayrac et al. 2022, arXiv 2204.14198) starts so; adding to constant tokens is our
    choice.

    Shapes: ``(B, K, H) -> (B, K, H)``.
    """

    def __init__(self, num_tokens: int, backbone_size: int, embedding_norm: float) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(num_tokens, backbone_size) * (embedding_norm / math.sqrt(backbone_size)))
        # One dimension and not none: DeepSpeed cannot broadcast a parameter without dimensions.
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base + torch.tanh(self.gate) * tokens

    def without_features(self, tokens: Tensor) -> Tensor:
        """What stands in the place of ``tokens (B, K, H)`` when nothing of the utterance is said: ``b``."""
        return self.base.to(tokens.dtype).expand_as(tokens)


def drop_rows(tokens: Tensor, substitute: Tensor, rate: float) -> Tensor:
    """Each row of ``tokens (B, K, H)`` as a whole replaced by ``substitute`` with the chance ``rate``.

    Rows that stay are not scaled up: a pseudo token means the same in training and at inference. Dropped rows keep their
    place in the graph with a gradient of zero, so that every parameter has a gradient on every process.
    """
    keep = torch.rand(tokens.shape[0], 1, 1, device=tokens.device) >= rate
    return torch.where(keep, tokens, substitute + 0.0 * tokens)
