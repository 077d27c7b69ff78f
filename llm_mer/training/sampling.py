"""Which questions a batch has: groups of alike length, one collator for both splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler

from llm_mer.data.dataset import MerDataset
from llm_mer.distributed.progress import track_progress
from llm_mer.model.collator import MerCollator
from llm_mer.training.arguments import MerTrainingArguments


def question_lengths(collator: MerCollator, what: str, training: MerTrainingArguments) -> list[int]:
    """Tokens of every question of a dataset, by which batches are grouped."""
    quiet = training.disable_tqdm or training.process_index != 0
    bar = track_progress(
        collator.dataset.questions, description=f"lengths ({what})", unit="question", hidden=quiet, keep=False
    )
    return [collator.length(question) for question in bar]


class GroupedByLength(LengthGroupedSampler):
    """Indices of questions in batches of alike length, in an order that follows from the seed and the epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, a resumed one too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


@dataclass
class _BothSplits:
    """Routes rows to the collator of their split (the trainer has one collator for training and evaluation)."""

    collator: MerCollator
    evaluation: MerDataset | None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        boundary = len(self.collator.dataset)
        if rows[0]["question"] < boundary:
            return self.collator(rows)
        assert self.evaluation is not None
        other = dataclasses.replace(self.collator, dataset=self.evaluation, packing_length=None)
        return other([{"question": row["question"] - boundary} for row in rows])
