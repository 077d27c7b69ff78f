"""Prompts of several tasks and all their answers in one row an utterance, and the mask under which each stands alone.

A row holds, one after another, what only this utterance has::

    (shared prefix) | trunk | question 1 | answers 1 | question 2 | answers 2 | … | padding

The *shared prefix* (an instruction) begins every prompt of the batch. It is not in the row: its keys and values are computed
once, for all rows. The *trunk* begins the utterance's prompts of all tasks: pseudo tokens, transcript. A *question* is the
rest of one task's prompt, and its *answers* are the nodes of a prefix tree. A question sees the trunk, an answer token sees
the trunk, its own question and the tokens on its way to it. With the position each token would have if its prompt and
answer stood alone, every probability is then that of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_mer.model.outputs import NextTokens
from llm_mer.model.packing import SHARED_FROM
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_tree import AnswerTree


@dataclass(frozen=True)
class TaskPrompts:
    """One task asked of every utterance of a batch.

    Attributes:
        prompts: of each utterance, in their order. answers: the tree of the task's admissible answers.
    """

    prompts: Sequence[PromptIds]
    answers: AnswerTree


def common_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with alike.

    >>> common_length([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    # What the first and the last in order begin with, all between them do.
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def shared_prefix(prompts: Sequence[PromptIds], single: bool = False) -> int:
    """How many tokens all prompts of a batch begin with alike, before their pseudo tokens; at least one is left over.

    0 for one prompt, which shares with nobody, unless ``single``.
    """
    if len(prompts) < 2 and not single:
        return 0
    ends = [min(prompt.start, len(prompt.ids) - 1) if prompt.count else len(prompt.ids) - 1 for prompt in prompts]
    return min(common_length([prompt.ids for prompt in prompts]), *ends)


def group_tasks(asked: Sequence[TaskPrompts]) -> list[list[int]]:
    """Tasks whose prompts can share a row: of every utterance they begin alike as far as behind the pseudo tokens.

    Prompts that differ earlier (an instruction of their own) would each need pseudo tokens of their own: another row.
    """
    groups: list[list[int]] = []
    for task, own in enumerate(asked):
        for group in groups:
            first = asked[group[0]]
            if all(_begin_alike(a, b) for a, b in zip(first.prompts, own.prompts, strict=True)):
                group.append(task)
                break
        else:
            groups.append([task])
    return groups


def _begin_alike(one: PromptIds, other: PromptIds) -> bool:
    if (one.start, one.count) != (other.start, other.count):
        return False
    behind = one.start + one.count
    return one.ids[:behind] == other.ids[:behind]


@dataclass
class PromptLayout:
    """The rows of a batch and what is read from them.

    Attributes:
        prefix: ids of the shared prefix, which the rows leave out. input_ids, position_ids: ``(B, W)``.
        pseudo_token_mask: ``(B, W)`` bool, None where prompts have no pseudo tokens.
        segments: ``(B, W)`` which segment each position belongs to: the trunk, a question, an answer token, padding.
        sees: ``(S, S)`` bool, whether positions of a segment see those of another.
        next_tokens: the answer tokens whose log-probabilities are asked for, of all tasks one after another.
    """

    prefix: tuple[int, ...]
    input_ids: Tensor
    position_ids: Tensor
    pseudo_token_mask: Tensor | None
    segments: Tensor
    sees: Tensor
    next_tokens: NextTokens

    @classmethod
    def build(cls, asked: Sequence[TaskPrompts], single: bool = False) -> PromptLayout:
        """Lay out tasks of one group (:func:`group_tasks`), on the CPU.

        Args:
            single: let a single utterance have a shared prefix too, which is worth it where the next batch has the same.
        """
        trees = [own.answers for own in asked]
        by_utterance = list(zip(*(own.prompts for own in asked), strict=True))
        trunks = [common_length([prompt.ids for prompt in prompts]) for prompts in by_utterance]
        begun = [
            PromptIds(prompts[0].ids[:trunk], prompts[0].start, prompts[0].count)
            for prompts, trunk in zip(by_utterance, trunks, strict=True)
        ]
        shared = shared_prefix(begun, single)
        if shared < SHARED_FROM:
            shared = 0
        # Segment 0 is the trunk. Each task then has one for its question and one for each node of its answers.
        questions, segment = [], 1
        for tree in trees:
            questions.append(segment)
            segment += 1 + len(tree.tokens)
        padding = segment
        rows: list[list[tuple[int, int, int]]] = []  # (token, position in its prompt, segment)
        read_positions: list[list[int]] = []
        for prompts, trunk in zip(by_utterance, trunks, strict=True):
            row = [(token, shared + i, 0) for i, token in enumerate(prompts[0].ids[shared:trunk])]
            ends: list[int] = []
            for prompt, tree, question in zip(prompts, trees, questions, strict=True):
                row += [(token, trunk + i, question) for i, token in enumerate(prompt.ids[trunk:])]
                # The prompt's last token predicts first tokens of answers. It is the trunk's where the question is empty.
                ends.append(len(row) - 1 if len(prompt.ids) > trunk else trunk - shared - 1)
                ends += range(len(row), len(row) + len(tree.tokens))
                last = len(prompt.ids) - 1
                nodes = zip(tree.tokens, tree.depths, strict=True)
                row += [(token, last + depth, question + 1 + i) for i, (token, depth) in enumerate(nodes)]
            rows.append(row)
            read_positions.append(ends)
        width = max(len(row) for row in rows)
        table = torch.tensor([row + [(0, 0, padding)] * (width - len(row)) for row in rows])  # (B, W, 3)
        mask = None
        if begun[0].count:
            mask = torch.zeros(len(rows), width, dtype=torch.bool)
            for i, prompt in enumerate(begun):
                mask[i, prompt.start - shared : prompt.start - shared + prompt.count] = True
        return cls(
            tuple(begun[0].ids[:shared]),
            table[..., 0],
            table[..., 1],
            mask,
            table[..., 2],
            cls._visibility(trees, questions, padding),
            cls._next_tokens(trees, read_positions),
        )

    @staticmethod
    def _visibility(trees: Sequence[AnswerTree], questions: Sequence[int], padding: int) -> Tensor:
        """``(S, S)`` bool over segments. Order inside a row is left to :meth:`visible`."""
        sees = torch.eye(padding + 1, dtype=torch.bool)  # padding sees padding: one that sees nothing would be NaN
        sees[:padding, 0] = True  # everything else sees the trunk
        for tree, question in zip(trees, questions, strict=True):
            nodes = slice(question + 1, question + 1 + len(tree.tokens))
            sees[nodes, question] = True  # an answer token sees its own question, and no other
            sees[nodes, nodes] = tree.ancestors  # and of the answers what leads to it
        return sees

    @staticmethod
    def _next_tokens(trees: Sequence[AnswerTree], positions: list[list[int]]) -> NextTokens:
        nodes, tokens, ends, first = [], [], [], 0
        for tree in trees:
            nodes += [first + parent for parent, _ in tree.edges]
            tokens += [token for _, token in tree.edges]
            ends.append(first)
            first += 1 + len(tree.tokens)  # the end of the prompt is node 0 of its answers
        return NextTokens(torch.tensor(positions), torch.tensor(nodes), torch.tensor(tokens), torch.tensor(ends))

    def visible(self, device: torch.device) -> Tensor:
        """``(B, 1, W, P + W)`` bool: what each position sees of the ``P`` tokens of the shared prefix and of its row."""
        segments, width = self.segments.to(device), self.segments.shape[1]
        # A position sees those of the segments that its own sees, if they stand before it: parents precede their children.
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        visible = self.sees.to(device)[segments[:, :, None], segments[:, None, :]] & causal
        return torch.nn.functional.pad(visible, (len(self.prefix), 0), value=True).unsqueeze(1)
