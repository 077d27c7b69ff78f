"""The read-out: classes and numbers read off the language model's last hidden state, without a word being said."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_mer.model.outputs import NextTokens
from llm_mer.prompting.tasks import Task


def read_out_sizes(tasks: list[Task]) -> dict[str, int]:
    """``{task: outputs}``: one a class, one for a number."""
    return {task.name: task.num_classes if task.kind == "classification" else 1 for task in tasks}


def read_out_target(task: Task, truth: str | float) -> float:
    """What a read-out learns: the index of a class, or a number's value ``2 (y - low) / (high - low) - 1`` in its range."""
    if task.kind == "classification":
        return float(task.class_index(truth))
    low, high = task.require_range()
    return 2 * (task.score(truth) - low) / (high - low) - 1


def read_out_score(task: Task, output: float) -> float:
    """The number of an output, in the unit of the task and inside its range."""
    low, high = task.require_range()
    return min(max(low + (high - low) * (output + 1) / 2, low), high)


class ReadOut(nn.Module):
    """``z = W h + b`` of the hidden state ``h`` at the answer position, whose logits predict an answer's first token.

    One linear map has the outputs of all tasks one after another: ``C`` logits of a class task, one number of a score on
    the scale [-1, 1] of its range. It is held and computed in float32, whatever the backbone is in.

    Args:
        hidden_size: ``H`` of the backbone. sizes: ``{task: outputs}`` in order.
    """

    def __init__(self, hidden_size: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.linear = nn.Linear(hidden_size, sum(self.sizes.values()), dtype=torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., H)`` to ``(..., outputs of all tasks)`` in float32 (float64 of a model in it)."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = self.linear.weight, self.linear.bias
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            return F.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype))


def columns_of(sizes: Mapping[str, int], task: str) -> slice:
    """Which outputs are a task's."""
    start = 0
    for name, size in sizes.items():
        if name == task:
            return slice(start, start + size)
        start += size
    raise KeyError(task)


def answer_positions(labels: Tensor) -> Tensor:
    """``(R, L)`` labels to ``(R, L - 1)`` bool, True where a sample's first answer token is predicted.

    Samples of a packed row are told apart by their prompts, which have no label.
    """
    predicts = labels[:, 1:] != -100
    return predicts & ~F.pad(predicts[:, :-1], (1, 0))


def prompt_ends(hidden: Tensor, labels: Tensor | None, asked: NextTokens | None, nodes: Tensor | None) -> Tensor | None:
    """Hidden states at the positions that predict an answer's first token: ``(B, H)``, or ``(B, T, H)`` of ``asked``.

    Samples stand in the order of their rows. None where no position is named, as in generation.
    """
    if asked is not None:
        if asked.ends is None:
            return None
        rows = torch.arange(hidden.shape[0], device=hidden.device).unsqueeze(1)
        return hidden[rows, asked.positions[:, asked.ends]]
    if nodes is not None:
        # The first node of each row is its prompt's last position.
        first = torch.ones_like(nodes[:, 0], dtype=torch.bool)
        first[1:] = nodes[1:, 0] != nodes[:-1, 0]
        return hidden[nodes[first, 0], nodes[first, 1]]
    return None if labels is None else hidden[:, :-1][answer_positions(labels)]


def read_out_losses(
    outputs: Tensor, sizes: Mapping[str, int], tasks: Tensor, targets: Tensor, votes: Tensor | None = None
) -> Tensor:
    """Cross entropy of a class or of votes, absolute error of a number in halves of its range: ``(B,)``.

    Args:
        outputs: ``(B, outputs)`` of :class:`ReadOut`. tasks: ``(B,)`` index of each sample's task in ``sizes``.
        targets: ``(B,)`` of :func:`read_out_target`. votes: ``(B, C)`` shares of votes, NaN rows where there are none.
    """
    total = outputs.new_zeros(outputs.shape[0])
    for number, (name, size) in enumerate(sizes.items()):
        own, part = tasks == number, outputs[:, columns_of(sizes, name)]
        if size == 1:
            losses = (part.squeeze(1) - targets).abs()
        else:
            losses = F.cross_entropy(part, torch.where(own, targets, 0.0).long(), reduction="none")
            if votes is not None:
                shares = votes[:, :size].to(part.dtype)
                spread = F.cross_entropy(part, torch.nan_to_num(shares), reduction="none")
                losses = torch.where(torch.isnan(shares[:, 0]), losses, spread)
        total = total + torch.where(own, losses, 0.0)
    return total


def read_out_of(model: nn.Module) -> ReadOut | None:
    """The read-out inside a bare, PEFT-wrapped or DDP-wrapped model (the trained copy); None without one."""
    named = model.named_modules()
    return next((m for name, m in named if isinstance(m, ReadOut) and "original_module" not in name), None)
