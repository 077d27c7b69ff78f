"""Batches in which every question stands with all its admissible answers, for losses over their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llm_mer.backbones.attention import additive_mask
from llm_mer.data.dataset import Question
from llm_mer.model.collator import MerBatch, MerCollator, pad_ids, pad_prompts, vote_shares
from llm_mer.model.processing_mer import PreparedSample, PromptIds
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.training.answer_objectives import AnswerTargets, as_batch
from llm_mer.training.class_balance import ClassBalance


@dataclass(frozen=True)
class AnswerSet:
    """The admissible answers of a task in a language, as evaluation scores them: their ends included."""

    tree: AnswerTree
    index: dict[tuple[int, ...], int]
    values: tuple[float, ...] | None

    @cached_property
    def children(self) -> list[list[int]]:
        """For each node, the tokens that follow it in some answer; node 0 is the prompt's end."""
        found: list[list[int]] = [[] for _ in range(len(self.tree.tokens) + 1)]
        for parent, token in self.tree.edges:
            found[parent].append(token)
        return found


@dataclass
class AnswerCollator(MerCollator):
    """Questions to batches of prompts with all their answers behind them, each seen from the prompt alone.

    A row is ``prompt | answer tokens of the tree | padding``. An answer token sees the prompt and the tokens on its way, at
    the position it would have alone (:mod:`llm_mer.scoring.prompt_layout` does the same for evaluation).

    Args:
        eager: the backbone's attention adds its mask to the scores; it is then made of numbers.
        balance: of the classes, in the training loss.
    """

    eager: bool = False
    balance: ClassBalance | None = None
    _sets: dict[tuple[str, str], AnswerSet] = field(default_factory=dict, repr=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        questions = [self.dataset.questions[int(row["question"])] for row in rows]
        samples = self._prepare_all(questions, with_answer=True)
        sets = [self.answer_set(question) for question in questions]
        batch = MerBatch()
        self._lay_out(batch, samples, sets)
        languages = [LANGUAGES.index(self.dataset.language(question.row)) for question in questions]
        batch.language_ids = torch.tensor(languages, dtype=torch.long)
        self._pad_inputs(batch, questions, samples, with_answer=True)
        nodes, tokens, targets = self._answers(questions, samples, sets)
        # One truth a question: the trainer counts the labels of a step, and divides by them.
        answers = {"labels": targets.truth, "answer_nodes": nodes, "answer_tokens": tokens}
        return {**batch.model_inputs(), **answers, **as_batch(targets)}

    def answer_set(self, question: Question) -> AnswerSet:
        """The answers of a question's task in its utterance's language."""
        task, language = question.task, self.dataset.language(question.row)
        key = (task.name, language)
        if key not in self._sets:
            answers = self.processor.answers(task, language)
            tree = AnswerTree.build(answers, self.processor.end_token_id)
            values = task.grid() if task.kind == "regression" else None
            self._sets[key] = AnswerSet(tree, {tuple(answer): i for i, answer in enumerate(answers)}, values)
        return self._sets[key]

    def most_answer_tokens(self) -> int:
        """Of any question's answers, beside its prompt."""
        return max(len(self.answer_set(question).tree.tokens) for question in self.dataset.questions)

    def length(self, question: Question) -> int:
        """Tokens of a question with all its answers."""
        sample = self.prepare(question, True)
        assert sample.prompt is not None
        return len(sample.prompt.ids) + len(self.answer_set(question).tree.tokens)

    def _lay_out(self, batch: MerBatch, samples: Sequence[PreparedSample], sets: Sequence[AnswerSet]) -> None:
        """``input_ids``, ``position_ids``, ``pseudo_token_mask``: ``(B, W)``; ``attention_mask``: ``(B, 1, W, W)``."""
        rows, positions = [], []
        for sample, answers in zip(samples, sets, strict=True):
            assert sample.prompt is not None
            prompt, tree = sample.prompt.ids, answers.tree
            rows.append(PromptIds([*prompt, *tree.tokens], sample.prompt.start, sample.prompt.count))
            # A first token of an answer stands right behind the prompt's last, wherever it stands in the row.
            positions.append([*range(len(prompt)), *(len(prompt) - 1 + depth for depth in tree.depths)])
        batch.input_ids, _, batch.pseudo_token_mask = pad_prompts(rows, self.processor.filler_id)
        batch.position_ids = pad_ids(positions, 0)[0]
        width = batch.input_ids.shape[1]
        visible = torch.eye(width, dtype=torch.bool).repeat(len(samples), 1, 1)  # padding sees itself, and is seen by none
        for sees, row, answers in zip(visible, rows, sets, strict=True):
            end = len(row.ids)
            begin = end - len(answers.tree.tokens)
            sees[:begin, :begin] = torch.ones(begin, begin, dtype=torch.bool).tril()
            sees[begin:end, :begin] = True
            sees[begin:end, begin:end] = answers.tree.ancestors
        mask = visible.unsqueeze(1)
        # Eager attention adds the mask to scores of any type, and takes the softmax in float32.
        batch.attention_mask = additive_mask(mask, torch.float32) if self.eager else mask

    def _answers(
        self, questions: Sequence[Question], samples: Sequence[PreparedSample], sets: Sequence[AnswerSet]
    ) -> tuple[Tensor, Tensor, AnswerTargets]:
        """Where the answers' tokens are read, and how they add up to answers.

        Returns:
            ``(N, 2)`` row and position of each node, ``(N, K)`` the tokens that may follow it, and what is made of their
            log-probabilities. Where fewer than ``K`` follow, token 0 stands, which nobody reads.
        """
        most = max(len(tokens) for answers in sets for tokens in answers.children)
        count = max(len(answers.tree.paths) for answers in sets)
        depth = max(len(path) for answers in sets for path in answers.tree.paths)
        nodes: list[tuple[int, int]] = []
        tokens: list[list[int]] = []
        paths = torch.full((len(questions), count, depth), -1, dtype=torch.long)
        values = torch.full((len(questions), count), torch.nan)
        for row, (sample, answers) in enumerate(zip(samples, sets, strict=True)):
            assert sample.prompt is not None
            indices = {
                edge: (len(nodes) + edge[0]) * most + answers.children[edge[0]].index(edge[1]) for edge in answers.tree.edges
            }
            for answer, path in enumerate(answers.tree.paths):
                paths[row, answer, : len(path)] = torch.tensor([indices[answers.tree.edges[edge]] for edge in path])
            if answers.values is not None:
                values[row, : len(answers.values)] = torch.tensor(answers.values)
            # Node 0 is the prompt's last position; the others follow it in the row as they do in the tree.
            nodes += [(row, len(sample.prompt.ids) - 1 + node) for node in range(len(answers.children))]
            tokens += [children + [0] * (most - len(children)) for children in answers.children]
        truth = [
            answers.index[tuple(sample.answer[:-1])] if question.votes is None else question.votes.first[0]
            for question, sample, answers in zip(questions, samples, sets, strict=True)
        ]
        scores, balance = [_number(question) for question in questions], self._balance(questions, count)
        targets = AnswerTargets(
            paths, torch.tensor(truth), values, torch.tensor(scores), *balance, vote_shares(questions, count)
        )
        return torch.tensor(nodes), torch.tensor(tokens), targets

    def _balance(self, questions: Sequence[Question], count: int) -> tuple[Tensor | None, Tensor | None]:
        """``(B,)`` weights of the questions and ``(B, count)`` adjustments of their answers; None without a balance."""
        if self.balance is None:
            return None, None
        adjustments = torch.zeros(len(questions), count)
        for row, question in enumerate(questions):
            own = self.balance.adjustments.get(question.task.name, ())
            adjustments[row, : len(own)] = torch.tensor(own)
        return torch.tensor([self.balance.weight(question) for question in questions]), adjustments


def _number(question: Question) -> float:
    """The true number of a question; NaN for a label."""
    if question.task.kind != "regression":
        return float("nan")
    assert question.truth is not None
    return question.task.score(question.truth)
