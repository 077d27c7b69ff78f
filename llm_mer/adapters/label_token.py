"""A pseudo token made of label words: the adapter's own answer, said in the language model's vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelToken(nn.Module):
    """``t = Σ_c softmax(z)_c · w_c``: the words of the ``C`` labels, as probable as the own classifier's logits ``z`` say.

    ``w (C, H)`` are learned and start at the backbone's embeddings of the label words (:meth:`initialise`). So from the
    first step on the language model reads a mixture of words that it knows, and the word of a label where the classifier is
    certain; a projected pseudo token starts in a direction that means nothing to it. The gradient of the language model's
    loss reaches the classifier. The mixture is shorter than its words where the classifier is uncertain; a backbone that
    normalises its inputs reads its direction. Our design, in no paper of the five.

    Shapes: ``(B, C) -> (B, 1, H)``.
    """

    def __init__(self, num_classes: int, backbone_size: int, embedding_norm: float) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(num_classes, backbone_size) * (embedding_norm / backbone_size**0.5))

    def initialise(self, label_vectors: Tensor) -> None:
        """Start at the mean token embeddings of the label words, ``(C, H)``."""
        with torch.no_grad():
            self.words.copy_(label_vectors)

    def forward(self, logits: Tensor) -> Tensor:
        # At least float32: half precision would round small probabilities away.
        precise = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        shares = torch.softmax(precise, dim=-1).to(self.words.dtype)
        return (shares @ self.words).unsqueeze(1)
