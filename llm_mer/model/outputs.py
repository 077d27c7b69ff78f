"""The one typed output of every model here, and what distributed training needs to see through it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor
from torch.utils import _pytree
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from llm_mer.adapters.base import FusionOutput


@dataclass
class MerOutput(ModelOutput):
    """Output of :class:`~llm_mer.model.modeling_mer.MerModel` and of what is built on it.

    Attributes:
        loss: mean negative log-likelihood of the answer tokens, when labels are given.
        loss_sum: their sum; a trainer divides it by the count over a global batch.
        logits: ``(N, V)`` at the ``N`` positions that predict an answer token when labels are given, else ``(B, L, V)``;
            None beside a loss that never holds them (``answer_loss``), and where the backbone ran without its head.
        last_hidden_state: ``(B, L, H)`` of the backbone; None beside a loss, which needs none of it any more,
            and beside :class:`NextTokens`, for which it is not computed everywhere.
        answer_log_probs: ``(B, E)`` float32 log-probabilities of the answer tokens asked for by :class:`NextTokens`, or
            ``(N, K)`` of those asked for by ``answer_nodes``.
        read_out: ``(B, outputs)`` of :class:`~llm_mer.model.read_out.ReadOut` beside a loss, ``(B, T, outputs)`` at
            the ends of :class:`NextTokens`; None without a read-out.
        fusion: what the adapter said, itself; None where it did not run (later steps of generation).
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    answer_log_probs: Tensor | None = None
    read_out: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    fusion: FusionOutput | None = None


@dataclass(frozen=True)
class NextTokens:
    """Tokens whose log-probabilities a forward is asked for, in position of logits over the vocabulary.

    Attributes:
        positions: ``(B, N)`` positions of the row, after which a token is asked about.
        nodes: ``(E,)`` which of the ``N`` positions each of the ``E`` tokens follows. tokens: ``(E,)`` their ids.
        ends: ``(T,)`` which of the ``N`` positions end a prompt, for a read-out; None where nothing is read.
    """

    positions: Tensor
    nodes: Tensor
    tokens: Tensor
    ends: Tensor | None = None


def find_label_positions(labels: Tensor) -> Tensor:
    """``(B, L) -> (N,)``: the positions, one row after another, that hold a label and are not the first of their row.

    >>> import torch
    >>> find_label_positions(torch.tensor([[-100, 7, 8], [9, -100, 2]]))
    tensor([1, 2, 5])
    """
    behind = labels != -100
    behind[:, 0] = False
    return behind.flatten().nonzero().squeeze(1)


def register_fusion_output() -> None:
    """Let torch see the tensors of a :class:`FusionOutput` inside an output.

    DDP (``_tree_flatten_with_rref``) and FSDP2 (its post-forward hook) look for the tensors of an output by
    ``torch.utils._pytree``, which knows ModelOutput from transformers, but takes another dataclass for a single leaf: the
    adapter's losses would then bypass their hooks. Seen in torch 2.13; the public ``torch.export.register_dataclass`` does
    the same, but imports the compiler.
    """
    if FusionOutput not in _pytree.SUPPORTED_NODES:
        _pytree.register_dataclass(FusionOutput, field_names=[entry.name for entry in fields(FusionOutput)])


register_fusion_output()
