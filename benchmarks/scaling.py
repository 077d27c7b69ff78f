"""How do a training step, an answer and their memory grow with batch, length, vocabulary, pseudo tokens, labels and ranks?

One thing varies at a time from a middle setting. A training step is LoRA and EGMF with its losses; an answer is the
probability of every label (``AnswerTreeScorer``).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import torch
from common import (
    PSEUDO_TOKENS,
    Size,
    alternate,
    answer_prompts,
    backbone,
    in_fork,
    mer_batch,
    mer_model,
    options,
    report,
)
from torch import nn
from training_step import mer_step, optimiser_step
from vocabulary_memory import resident

from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.scoring.answer_scorer import AnswerTreeScorer
from llm_mer.training.model_builder import add_lora
from llm_mer.training.options import ModelArguments

END = 2


@dataclass(frozen=True)
class Point:
    """One setting."""

    size: Size = field(default_factory=lambda: Size(4, 256, 32_000))
    batch: int = 8
    length: int = 128
    pseudo_tokens: int = PSEUDO_TOKENS
    labels: int = 7


def answers(count: int) -> list[list[int]]:
    """Labels of one and two tokens in turn, all of whose first tokens differ."""
    return [[100 + i] if i % 2 == 0 else [100 + i, 900 + i] for i in range(count)]


def work(point: Point) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step and one batch of answers."""
    tokens = point.pseudo_tokens
    inputs = mer_batch(point.size, point.batch, point.length, pseudo_tokens=tokens)
    asked = mer_batch(point.size, point.batch, point.length, answer=False, pseudo_tokens=tokens)
    scorer = AnswerTreeScorer(mer_model(backbone(point.size), pseudo_tokens=tokens).eval())
    prompts, given = answer_prompts(asked, answers(point.labels), END)
    return mer_step(point.size, inputs, "egmf", tokens)[0], lambda: scorer.score([prompts], given)


def measure(point: Point, repetitions: int) -> tuple[float, float, float, float]:
    """Milliseconds a question of a step and of an answer, and MB that each adds at its peak, in this process (Linux)."""
    torch.set_num_threads(1)
    step, answer = work(point)
    added = []
    for side in (answer, step):
        before = resident("VmRSS")
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        side()
        added.append(resident("VmHWM") - before)
    taken = alternate({"step": step, "answer": answer}, repetitions, warmup=0)
    step_ms, answer_ms = (1000 * statistics.median(taken[name]) / point.batch for name in ("step", "answer"))
    return step_ms, answer_ms, added[1], added[0]


class _Loss(nn.Module):
    """The weighted loss as a module's output, which is what data-parallel training wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        output = self.model(**batch, use_cache=False)
        total: torch.Tensor = output.loss + sum(output.fusion.aux_losses.values())
        return total


def _rank(rank: int, world: int, meeting: str, point: Point, repetitions: int, sender: Any) -> None:
    """One rank of data-parallel training on its share of the batch: processor and wall seconds of a step."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    model: nn.Module = _Loss(add_lora(mer_model(backbone(point.size)), ModelArguments()).train())
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    batch = mer_batch(point.size, point.batch // world, point.length)
    step = optimiser_step(model, lambda: model(batch))
    taken = []
    for turn in range(repetitions + 1):
        if world > 1:
            torch.distributed.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        step()
        if turn:
            taken.append((time.process_time() - processor, time.perf_counter() - wall))
    sender.send(tuple(statistics.median(column) for column in zip(*taken, strict=True)))
    if world > 1:
        torch.distributed.destroy_process_group()


def ranks(world: int, point: Point, repetitions: int) -> list[tuple[float, float]]:
    """``(processor, wall)`` seconds of a step on each rank."""
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        meeting = os.path.join(folder, "meeting")
        started = [
            context.Process(target=_rank, args=(rank, world, meeting, point, repetitions, pipes[rank][1]))
            for rank in range(world)
        ]
        for process in started:
            process.start()
        for _, sender in pipes:
            sender.close()
        found = [receiver.recv() for receiver, _ in pipes]
        for process in started:
            process.join()
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    repetitions = 1 if arguments.quick else arguments.repetitions
    middle = Point(Size(2, 128, 4_000), 2, 48) if arguments.quick else Point()
    plan = {
        "batch": [replace(middle, batch=n) for n in (1, 4, 8, 32)],
        "positions a row": [replace(middle, length=n) for n in (64, 128, 256, 512)],
        "vocabulary": [replace(middle, size=replace(middle.size, vocabulary=n)) for n in (4_000, 65_000, 152_000)],
        "pseudo tokens": [replace(middle, pseudo_tokens=n) for n in (1, 4, 16, 64)],
        "labels": [replace(middle, labels=n) for n in (2, 7, 28, 61)],
    }
    values: dict[str, Callable[[Point], int]] = {
        "batch": lambda p: p.batch,
        "positions a row": lambda p: p.length,
        "vocabulary": lambda p: p.size.vocabulary,
        "pseudo tokens": lambda p: p.pseudo_tokens,
        "labels": lambda p: p.labels,
    }
    if arguments.quick:
        plan = {name: points[:2] for name, points in plan.items()}
    table = []
    for name, points in plan.items():
        for point in points:
            found = in_fork(measure, point, repetitions)
            cells = [f"{found[0]:.1f}", f"{found[1]:.1f}", f"{found[2]:.0f}", f"{found[3]:.0f}"]
            if name == "labels":  # no part of a training step
                cells[0] = cells[2] = ""
            table.append([name, f"{values[name](point):,}", *cells])
            print(*table[-1], file=sys.stderr, flush=True)
    with torch_threads(1):
        for world in (1, 2):
            found = ranks(world, middle, repetitions)
            processor, wall = sum(f[0] for f in found), max(f[1] for f in found)
            cells = [f"{1000 * processor / middle.batch:.1f} ({1000 * wall / middle.batch:.1f} wall)", "", "", ""]
            table.append(["ranks", str(world), *cells])
            print(*table[-1], file=sys.stderr, flush=True)
    head = ["what varies", "value", "step, ms a question", "answer, ms a question", "added by a step, MB"]
    head += ["added by an answer, MB"]
    notes = (
        f"The middle setting is a {middle.size} Llama with a vocabulary of {middle.size.vocabulary:,}, batch "
        f"{middle.batch}, {middle.length} positions a row, {middle.pseudo_tokens} pseudo tokens, {middle.labels} labels of "
        "one and two tokens, one rank. float32, random weights, one thread; processor time, medians of "
        f"{repetitions}; memory is the first run's peak over the built model, each line in a process of its own (freed "
        "memory that is used again does not show). Ranks share the middle setting's batch over gloo: processor time is of "
        "all ranks together, and wall time depends on what else the cores do."
    )
    report("scaling", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
