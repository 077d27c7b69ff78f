"""Answers as a prefix tree of tokens, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class AnswerTree:
    """Answers as a prefix tree, so that shared prefixes are computed once.

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

    @cached_property
    def ancestors(self) -> Tensor:
        """``(M, M)`` bool: node ``i`` may look at node ``j`` (itself and the nodes on its way to the prompt)."""
        count = len(self.tokens)
        seen = torch.zeros(count, count, dtype=torch.bool)
        for node in range(count):
            if self.parents[node] > 0:
                seen[node] = seen[self.parents[node] - 1]
            seen[node, node] = True
        return seen

    @cached_property
    def path_matrix(self) -> Tensor:
        """``(C, E)`` of zeros and ones: the log-probability of an answer is its row times the edges' log-probabilities."""
        matrix = torch.zeros(len(self.paths), len(self.edges))
        for answer, path in enumerate(self.paths):
            for edge in path:
                matrix[answer, edge] += 1.0
        return matrix


def has_prefix_conflict(answers: Sequence[Sequence[int]]) -> bool:
    """Whether the tokens of an answer are the first of another's, so that only their ends tell them apart."""
    ordered = sorted(tuple(answer) for answer in answers)
    return any(second[: len(first)] == first for first, second in pairwise(ordered))
