"""What do batches grouped by length and packed batches save, against batches padded to their longest?

The questions have MELD's lengths (see ``reference_recipe.py``). Every side trains LoRA and the adapter on the same number
of questions a step; questions a processor second, by row length. Prompts of a packed row that begin alike share a copy of
their beginning, which is long in ``preamble``.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys

import numpy as np
import torch
from common import Size, options, ratio, report
from reference_recipe import Setting, in_turn, optimised, our_loss
from torch import Tensor

from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.training.model_builder import add_lora
from llm_mer.training.options import ModelArguments
from llm_mer.training.sampling import GroupedByLength

PACKING = (128, 256, 512)


def used_places(batch: dict[str, Tensor]) -> int:
    """Places of a batch that are no padding."""
    return int((batch["sample_ids"] >= 0).sum() if "sample_ids" in batch else batch["attention_mask"].sum())


def measure(setting: Setting, style: str, rows: int, turns: int) -> list[list[str]]:
    """One line a kind of batch."""
    collator, questions = setting.collator, setting.collator.dataset.questions
    lengths = [collator.length(question) for question in questions]
    random = np.random.default_rng(1).permutation(len(questions)).tolist()
    grouped = list(GroupedByLength(rows, lengths, 0))
    start = torch.randperm(len(questions) // rows, generator=torch.Generator().manual_seed(0))[:turns].tolist()
    step = optimised(add_lora(setting.model(), ModelArguments()).train(), our_loss)
    data = {}
    for name, order, length in [
        ("padded", random, None),
        ("grouped by length", grouped, None),
        *((f"packed, {length}", random, length) for length in PACKING),
    ]:
        packing = dataclasses.replace(collator, packing_length=length)
        batches = [[questions[i] for i in order[place * rows : (place + 1) * rows]] for place in start]
        data[name] = [packing.batch(batch, True).model_inputs() for batch in batches]
    taken = in_turn({name: (lambda turn, b=b: step(b[turn])) for name, b in data.items()}, turns)
    rates = {name: [rows / seconds for seconds in taken[name].processor] for name in data}
    table = []
    for name, batches in data.items():
        padding = 1 - sum(map(used_places, batches)) / sum(batch["input_ids"].numel() for batch in batches)
        rate = rates[name]
        shape = " × ".join(str(n) for n in batches[0]["input_ids"].shape)
        spread = f"{min(rate):.1f}–{max(rate):.1f}"
        cells = [style, name, f"{padding:.0%}", shape, f"{statistics.median(rate):.1f}", spread]
        table.append([*cells, f"{ratio(rate, rates['padded']):.2f} ×"])
        print(*table[-1], file=sys.stderr, flush=True)
    return table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="questions a step")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    size = Size(2, 128, 4_000) if arguments.quick else Size(6, 256, 32_000)
    rows, turns, count = (4, 2, 48) if arguments.quick else (arguments.rows, arguments.turns, 512)
    table = []
    for style in ("short", "instruct", "preamble"):
        with torch_threads(arguments.threads):
            table += measure(Setting.build(size, count, style), style, rows, turns)
    head = ["prompts", "batches", "padding", "rows × places, e.g.", "questions / processor s", "range", "× padded"]
    notes = (
        f"{size} Llama, vocabulary {size.vocabulary:,}, {rows} questions a step, {turns} turns of all sides one after "
        f"another, {arguments.threads} thread(s), float32, sdpa under a mask: a packed row pays for attention across its "
        "samples, which flash attention would skip. A packed step has the questions of the padded one, a grouped one others."
    )
    report("packing", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
