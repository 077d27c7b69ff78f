"""What would fusing an utterance once a training batch save, where both of its tasks are drawn into the batch?

A batch fuses each of its questions by itself. How often two questions of one utterance meet is counted over shuffled epochs,
and what the second fusion costs is timed: a step of the adapter over a whole batch less one over half of it is what a batch
would save in which every utterance stood twice.
"""

from __future__ import annotations

import statistics
import sys

import torch
from common import Size, alternate, mer_batch, milliseconds, options, report
from training_step import mer_step

from llm_mer.adapters import adapter_names
from llm_mer.distributed.torch_threads import torch_threads

CORPORA = {"1 000": 1_000, "10 000": 10_000}
"""Utterances, each with two questions."""
BATCH, TOKENS, EPOCHS = 24, 64, 20


def repeated_share(utterances: int, batch: int, epochs: int) -> float:
    """Share of the questions of two tasks whose utterance stands in their batch already, over shuffled epochs."""
    generator = torch.Generator().manual_seed(0)
    repeated = seen = 0
    for _ in range(epochs):
        for drawn in (torch.randperm(2 * utterances, generator=generator) // 2).split(batch):
            repeated += len(drawn) - len(drawn.unique())
            seen += len(drawn)
    return repeated / seen


def measure(size: Size, adapter: str, batch: int, repetitions: int, shares: dict[str, float]) -> list[str]:
    """The cells of one row."""
    step, whole = mer_step(size, mer_batch(size, batch, TOKENS, adapter), adapter)
    half = mer_step(size, mer_batch(size, batch // 2, TOKENS, adapter), adapter)[1]
    taken = alternate({"step": step, "whole": whole, "half": half}, repetitions)
    rows = zip(taken["step"], taken["whole"], taken["half"], strict=True)
    most = statistics.median((whole - half) / step for step, whole, half in rows)
    # Of a batch whose every utterance stood twice, half of the questions would be repeated.
    return [*(milliseconds(taken[side]) for side in taken), f"{most:.1%}", *(f"{2 * s * most:.3%}" for s in shares.values())]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    size, batch, repetitions, adapters = Size(6, 256, 4000), BATCH, arguments.repetitions, adapter_names()
    if arguments.quick:
        size, batch, repetitions, adapters = Size(2, 128, 4000), 8, 2, adapters[:1]
    shares = {name: repeated_share(count, batch, EPOCHS) for name, count in CORPORA.items()}
    table = []
    with torch_threads(arguments.threads):
        for adapter in adapters:
            table.append([adapter, *measure(size, adapter, batch, repetitions, shares)])
            print(*table[-1], sep=" | ", file=sys.stderr, flush=True)
    head = [
        "adapter",
        "step, ms",
        "adapter's own step, ms",
        "over half of the batch, ms",
        "saved if every utterance stood twice",
    ]
    head += [f"saved with {name} utterances" for name in CORPORA]
    counted = ", ".join(f"{share:.3%} with {name} utterances" for name, share in shares.items())
    notes = (
        f"{size} Llama, vocabulary {size.vocabulary}, LoRA, batch {batch}, {TOKENS} positions a row. Two tasks, questions "
        f"shuffled over {EPOCHS} epochs: of all questions, the utterance of {counted} stands in the batch already. "
        f"{arguments.threads} thread(s), float32, random weights; processor time, medians of {repetitions} turns, sides in "
        "turn, shares within a turn."
    )
    report("repeated_utterances", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
