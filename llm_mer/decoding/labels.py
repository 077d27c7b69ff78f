"""Exact log-probabilities of every admissible answer: one prefix pass, then all answers packed under a tree mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 2**26
"""Logit values held at once (256 MB in float32); longer work is cut into chunks of rows."""
SHARED_FROM = 8
"""Tokens that the prompts of a batch must begin with alike for a pass of their own."""


class ScoredModel(Protocol):
    """What scoring reads of a model: a transformers causal language model, or anything laid out like one."""

    @property
    def model(self) -> Callable[..., Any]:
        """Returns ``last_hidden_state`` and ``past_key_values``."""

    @property
    def lm_head(self) -> nn.Module:
        """Turns hidden states into logits."""


@dataclass
class AnswerTree:
    """Answers as a prefix tree, so that shared beginnings are computed once.

    Node 0 is the end of the prompt. Nodes 1 … M hold one answer token each, parents before children.

    Attributes:
        tokens: ``(M,)`` token of each node. parents: ``(M,)`` index of its parent (0 is the prompt).
        depths: ``(M,)`` 1 for a first token.
        edges: ``(E, 2)`` pairs (parent node, token) whose log-probability some answer needs, end tokens included.
        paths: for each answer, the edges it sums over.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]], end_token_id: int | None) -> AnswerTree:
        """The tree of ``answers``; only tokens that something follows become nodes."""
        tree = cls()
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edge_index: dict[tuple[int, int], int] = {}
        for answer in answers:
            if not len(answer):
                raise ValueError("an answer without tokens has no probability")
            sequence = [*answer, *([end_token_id] if end_token_id is not None else [])]
            path = []
            for depth, token in enumerate(sequence):
                parent = nodes[tuple(sequence[:depth])]
                edge = (parent, int(token))
                if edge not in edge_index:
                    edge_index[edge] = len(tree.edges)
                    tree.edges.append(edge)
                path.append(edge_index[edge])
                prefix = tuple(sequence[: depth + 1])
                if depth + 1 < len(sequence) and prefix not in nodes:
                    nodes[prefix] = len(nodes)
                    tree.tokens.append(int(token))
                    tree.parents.append(parent)
                    tree.depths.append(depth + 1)
            tree.paths.append(path)
        return tree

    def ancestors(self) -> Tensor:
        """``(M, M)`` bool: node ``i`` may look at node ``j`` (itself and the nodes on its way to the prompt)."""
        count = len(self.tokens)
        seen = torch.zeros(count, count, dtype=torch.bool)
        for node in range(count):
            if self.parents[node] > 0:
                seen[node] = seen[self.parents[node] - 1]
            seen[node, node] = True
        return seen

    def path_matrix(self) -> Tensor:
        """``(C, E)`` of zeros and ones: the log-probability of an answer is its row times the edges' log-probabilities."""
        matrix = torch.zeros(len(self.paths), len(self.edges))
        for answer, path in enumerate(self.paths):
            for edge in path:
                matrix[answer, edge] += 1.0
        return matrix


def shared_beginning(inputs: Mapping[str, Any]) -> int:
    """How many tokens every prompt of a batch begins with alike, before its pseudo tokens; at least one is left over.

    0 where that cannot be said: a single prompt, positions of the caller's own, embeddings in place of ids, padding inside a
    prompt, or samples of several languages, whose weights may differ.
    """
    ids, mask, languages = inputs.get("input_ids"), inputs["attention_mask"], inputs.get("language_ids")
    if ids is None or ids.shape[0] < 2 or "position_ids" in inputs or "past_key_values" in inputs or mask.ndim != 2:
        return 0
    if languages is not None and not bool((languages == languages[0]).all()):
        return 0
    width = ids.shape[1]
    places = torch.arange(width, device=ids.device)
    first, last = mask.argmax(dim=1), (mask * places).argmax(dim=1)  # (B,)
    if not bool((last - first + 1 == mask.sum(dim=1)).all()):
        return 0
    limit = last - first
    pseudo = inputs.get("pseudo_token_mask")
    if pseudo is not None:
        begin = torch.where(pseudo.any(dim=1), pseudo.int().argmax(dim=1), width)
        limit = torch.minimum(limit, begin - first)
    aligned = ids.gather(1, (first.unsqueeze(1) + places).clamp(max=width - 1))
    alike = (aligned == aligned[:1]).all(dim=0) & (places < limit.min())
    return int(alike.int().cumprod(dim=0).sum())


class LabelScorer:
    """Scores a fixed set of answers after any prompt.

    ``log p(answer | prompt) = Σ_i log p(token_i | prompt, token_<i)``, the end token included, exact: each answer token
    sees the prompt and its own earlier tokens only, at its true position. Two forward passes in all, however many answers;
    what all prompts of a batch begin with (an instruction) is computed once, in a short pass of one row before them.

    Args:
        model: ``.model`` (returns ``last_hidden_state`` and ``past_key_values``) and ``.lm_head``: a transformers causal
            language model or :class:`~llm_mer.modeling.MerForConditionalGeneration`.
        answers: token ids of each answer. end_token_id: closes an answer, so that "1" and "1.5" do not share mass; None
            scores the tokens alone.
    """

    def __init__(self, model: ScoredModel, answers: Sequence[Sequence[int]], end_token_id: int | None) -> None:
        self.model = model
        self.tree = AnswerTree.build(answers, end_token_id)

    @torch.no_grad()
    def score(self, inputs: Mapping[str, Any]) -> Tensor:
        """``(B, C)`` float32 natural-log probabilities of the answers.

        Args:
            inputs: keyword arguments of ``model.model`` for the prompt: ``input_ids (B, L)``, ``attention_mask (B, L)``
                padded on either side, and whatever else it reads (pseudo-token tensors). ``language_ids (B,)``, where
                there are any, go to the second pass too.
        """
        attention_mask = inputs["attention_mask"]
        batch = attention_mask.shape[0]
        device = attention_mask.device
        needs_second = bool(self.tree.tokens)
        carried = {name: inputs[name] for name in ("language_ids",) if name in inputs}
        shared = shared_beginning(inputs)
        if shared < SHARED_FROM:
            real, arguments = attention_mask, dict(inputs)
        else:
            cache, real, arguments = self._shared_pass(inputs, shared, carried)
            attention_mask = torch.cat([attention_mask.new_ones(batch, shared), real], dim=1)
            arguments |= {"past_key_values": cache, "attention_mask": attention_mask}
        positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -real.shape[1] :]
        arguments = {"position_ids": positions, **arguments}
        prefix = self.model.model(**arguments, use_cache=needs_second or "past_key_values" in arguments)
        steps = torch.arange(real.shape[1], device=device)
        last = (real * steps).argmax(dim=1)  # (B,) place of the last real token
        hidden = [prefix.last_hidden_state[torch.arange(batch, device=device), last].unsqueeze(1)]  # (B, 1, H)
        if needs_second:
            dtype = prefix.last_hidden_state.dtype
            hidden.append(self._tree_pass(prefix.past_key_values, attention_mask, dtype, carried))
        edges = self._edge_log_probs(torch.cat(hidden, dim=1))  # (B, E)
        return edges @ self.tree.path_matrix().to(device).T

    def _shared_pass(
        self, inputs: Mapping[str, Any], shared: int, carried: dict[str, Tensor]
    ) -> tuple[Any, Tensor, dict[str, Any]]:
        """The beginning that all rows share, once, repeated in the cache; the mask and inputs of what follows it.

        A row padded on the left keeps its width less the beginning, so its own beginning becomes padding.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        first = mask.argmax(dim=1)  # (B,) place of the first real token
        beginning = ids[0, first[0] : first[0] + shared].unsqueeze(0)
        once = {name: value[:1] for name, value in carried.items()}
        cache = self.model.model(input_ids=beginning, use_cache=True, **once).past_key_values
        cache.batch_repeat_interleave(ids.shape[0])
        places = torch.arange(ids.shape[1], device=ids.device)
        real = mask * (places >= (first + shared).unsqueeze(1))
        rest = dict(inputs)
        for name in ("input_ids", "pseudo_token_mask"):
            if name in rest:
                rest[name] = rest[name][:, shared:]
        return cache, real[:, shared:], rest

    def _tree_pass(self, cache: Any, attention_mask: Tensor, dtype: torch.dtype, carried: dict[str, Tensor]) -> Tensor:
        """Hidden states of every node: ``(B, M, H)``."""
        batch, length = attention_mask.shape
        device = attention_mask.device
        count = len(self.tree.tokens)
        tokens = torch.tensor(self.tree.tokens, device=device).expand(batch, count)
        depths = torch.tensor(self.tree.depths, device=device)
        positions = attention_mask.long().sum(dim=1, keepdim=True) - 1 + depths  # (B, M)
        visible = torch.cat(
            [
                attention_mask.bool()[:, None, :].expand(batch, count, length),
                self.tree.ancestors().to(device).expand(batch, count, count),
            ],
            dim=-1,
        )  # (B, M, L + M)
        lowest = torch.finfo(dtype).min
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, lowest).unsqueeze(1)
        output = self.model.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **carried,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _edge_log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probability of each edge: ``(B, 1 + M, H) -> (B, E)``, holding a bounded part of the logits at a time."""
        parents = torch.tensor([edge[0] for edge in self.tree.edges], device=hidden.device)
        tokens = torch.tensor([edge[1] for edge in self.tree.edges], device=hidden.device)
        weight = self.model.lm_head.weight
        assert isinstance(weight, Tensor)
        rows = max(1, CHUNK_ELEMENTS // max(weight.shape[0] * hidden.shape[1], 1))
        parts = []
        for chunk in hidden.split(rows):
            logits = self.model.lm_head(chunk).float()  # (b, 1 + M, V)
            normaliser = logits.logsumexp(dim=-1)  # (b, 1 + M)
            parts.append(logits[:, parents, tokens] - normaliser[:, parents])
        return torch.cat(parts)

    def log_probabilities(self, inputs: Mapping[str, Any]) -> Tensor:
        """``(B, C)`` scores normalised over the answers: an always-valid distribution."""
        return torch.log_softmax(self.score(inputs), dim=-1)

    def complete_mass(self, inputs: Mapping[str, Any]) -> Tensor:
        """``(B,)`` log-probability that a free answer would be an admissible one."""
        return self.score(inputs).logsumexp(dim=-1)
