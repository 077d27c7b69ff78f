"""What each micro-batch's losses weigh in the whole step, and how they are logged.

The loss itself is put together in ``MerTraining.compute_loss`` (:mod:`llm_mer.training.trainer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_mer.adapters.base import IGNORE_CLASS, FusionAdapter

STEP_TARGETS = "step_targets"
"""The key under which a training micro-batch carries its :class:`StepTargets`."""

_MOST_PENDING = 1024  # scalars of one loss that may wait on the device, should log lines be far apart


@dataclass(frozen=True)
class StepTargets:
    """Known targets, as ``(samples with a class, samples with a score)``."""

    local: tuple[int, int]
    """Of one micro-batch on this process."""
    total: tuple[int, int]
    """Of all micro-batches of the step, on all processes."""
    questions: tuple[int, int] = (0, 0)
    """Questions of the micro-batch, and of the step on all processes."""


def known_targets(batch: Mapping[str, Any], device: torch.device) -> Tensor:
    """How many samples of a batch have a class, and how many a score: ``(2,)``, on the device, without waiting for it."""
    classes, scores = batch.get("class_targets"), batch.get("score_targets")
    none = torch.zeros((), dtype=torch.long, device=device)
    return torch.stack(
        [
            none if classes is None else (classes != IGNORE_CLASS).sum().to(device),
            none if scores is None else (~torch.isnan(scores)).sum().to(device),
        ]
    )


def count_read_out_questions(batch: Mapping[str, Any]) -> int:
    """How many questions of a batch a read-out learns from."""
    targets = batch.get("read_out_targets")
    return 0 if targets is None else int(targets.shape[0])


def language_model_share(loss_sum: Tensor, answer_tokens: Any, processes: int) -> Tensor:
    """``n · Σ_local nll / N_global``: a micro-batch's part in the mean loss of an answer token.

    ``loss_sum`` is a scalar, ``answer_tokens`` the count in the whole global batch. ``processes`` is ``n``, or 1 where
    the count is of this process alone.
    """
    # A step without any answer token has a loss of 0, not of 0 / 0.
    count = torch.as_tensor(answer_tokens, device=loss_sum.device).clamp(min=1)
    # Gradients are averaged over the processes: times n, their mean is the sum over all samples.
    return processes * loss_sum / count


def auxiliary_share(
    adapter: FusionAdapter, name: str, targets: StepTargets, steps: int, processes: int, averaged: bool
) -> float:
    """What an auxiliary loss of a micro-batch is multiplied by: ``n · C_local / C_global``, or ``1 / g`` without counts.

    ``steps`` is ``g``, the micro-batches of the step. ``averaged``: the trainer divides by ``g`` itself.
    """
    # 1. How many samples the loss is a mean over, here and in the whole step.
    local, total = adapter.loss_count(name, *targets.local), adapter.loss_count(name, *targets.total)
    # 2. A loss of the batch as a whole weighs the same in each micro-batch.
    share = 1.0 / steps
    # 3. A mean over samples weighs by its samples, so that all means together are the mean over the whole batch;
    #    times n, because gradients are averaged over the processes.
    if local is not None and total is not None:
        share = processes * local / max(total, 1)
    # 4. What the trainer is going to divide by is taken out beforehand.
    return share * steps if averaged else share


class LossNotes:
    """Values of named losses, kept where they were computed until a log line needs them.

    Reading a scalar makes the processor wait for the accelerator, so nothing is read while micro-batches run.
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[tuple[int, Tensor, int]]] = {}
        self._sums: dict[str, dict[int, float]] = {}

    def add(self, name: str, step: int, value: Tensor, divisor: int) -> None:
        """Note a scalar: ``value / divisor`` is added to what the loss has in a step."""
        pending = self._pending.setdefault(name, [])
        # A copy: a compiled model may write its next result over this one.
        pending.append((step, value.detach().clone(), divisor))
        if len(pending) >= _MOST_PENDING:
            self._read(name)

    def take(self) -> dict[str, list[float]]:
        """Every loss's sums, one a step in the order of their first note; nothing is noted after this."""
        for name in list(self._pending):
            self._read(name)
        sums = {name: list(of_steps.values()) for name, of_steps in self._sums.items()}
        self._sums.clear()
        return sums

    def of_step(self, step: int) -> dict[str, float]:
        """Every loss's sum over a step, by name; all stays noted."""
        for name in list(self._pending):
            self._read(name)
        return {name: of_steps[step] for name, of_steps in self._sums.items() if step in of_steps}

    def _read(self, name: str) -> None:
        """Read all that is pending of a loss at once."""
        pending, sums = self._pending.pop(name), self._sums.setdefault(name, {})
        values = torch.stack([value for _, value, _ in pending]).tolist()
        for (step, _, divisor), value in zip(pending, values, strict=True):
            sums[step] = sums.get(step, 0.0) + value / divisor
