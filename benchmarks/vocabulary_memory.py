"""How much memory does a training step take with a 4k, a 65k and a 152k vocabulary, against logits at every position?

Each number is from a process of its own: the peak resident set during two training steps, counted from after the model was
built. The other side is the bare backbone with LoRA and transformers' own loss over all logits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from common import Size, in_fork, mer_batch, options, report
from training_step import bare_step, mer_step

VOCABULARIES = (4_000, 65_000, 152_000)
SIDES = ("ours", "all")


def resident(key: str) -> float:
    """A value of ``/proc/self/status`` in MB: ``VmRSS`` now, ``VmHWM`` the peak (Linux)."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(side: str, size: Size, rows: int, tokens: int) -> tuple[float, float]:
    """Two training steps of one side in this process: resident MB before them and at the peak."""
    torch.set_num_threads(1)
    batch = mer_batch(size, rows, tokens)
    step = mer_step(size, batch, "egmf")[0] if side == "ours" else bare_step(size, batch, all_positions=True)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step()
    step()
    return before, resident("VmHWM")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="batch size")
    parser.add_argument("--tokens", type=int, default=128, help="positions a row")
    arguments = parser.parse_args()
    rows, tokens = (4, 32) if arguments.quick else (arguments.rows, arguments.tokens)
    shape = Size(2, 128) if arguments.quick else Size()
    table = []
    for vocabulary in VOCABULARIES[:2] if arguments.quick else VOCABULARIES:
        cells = []
        for side in SIDES:
            size = Size(shape.layers, shape.hidden, vocabulary)
            cells.append(in_fork(measure, side, size, rows, tokens))
        (before, peak), (other_before, other_peak) = cells
        added, other_added = peak - before, other_peak - other_before
        numbers = [f"{v:.0f}" for v in (before, other_before, added, other_added, peak, other_peak)]
        table.append([f"{vocabulary:,}", *numbers, f"{added / other_added:.2f} ×", f"{peak / other_peak:.2f} ×"])
        print(*table[-1], file=sys.stderr, flush=True)
    head = ["vocabulary", "before, ours, MB", "before, all logits, MB", "added by the step, ours, MB"]
    head += ["added, all logits, MB", "peak, ours, MB", "peak, all logits, MB", "ours ÷ all, added", "ours ÷ all, peak"]
    copies = ", ".join(f"{rows * tokens * 4 * v / 2**20:.0f} MB at {v:,}" for v in VOCABULARIES)
    notes = (
        f"{shape} Llama, batch {rows}, {tokens} positions a row, 3 of them answers, float32, LoRA and AdamW; ours with "
        "EGMF. `before` holds Python, the libraries, the weights (at a large vocabulary mostly the embedding table) and the "
        f"batch. One copy of all logits is {copies}."
    )
    report("vocabulary_memory", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
