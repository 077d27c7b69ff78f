"""What does each adapter cost, in parameters, latency and memory, beside a bare gated projector?

The adapter alone, without a backbone: what it adds to every answer and to every training step. Memory is from a process of
its own: the peak resident set during two training steps, counted from after adapter and batch were built.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from common import Size, alternate, backbone, in_fork, mer_batch, mer_model, options, ratio, report
from training_step import Step, optimiser_step
from vocabulary_memory import resident

from llm_mer.adapters import adapter_class, adapter_names
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.modeling_mer import fusion_adapter_of

BARE = "gated_projector"
SIZE = Size(2, 256, 4000)


def answer_and_step(adapter: str, rows: int) -> tuple[Step, Step, int]:
    """The adapter's share of answering a batch, of a training step on it, and its parameters."""
    model = mer_model(backbone(SIZE), adapter)
    batch = mer_batch(SIZE, rows, 48, adapter)
    module, weights = fusion_adapter_of(model), adapter_class(adapter).default_loss_weights

    def answer() -> None:
        module.eval()
        with torch.no_grad():
            model.model.fuse(batch)

    def loss() -> torch.Tensor:
        module.train()
        fused = model.model.fuse(batch)
        return fused.pseudo_tokens.sum() + sum(weights.get(k, 0.0) * v for k, v in fused.aux_losses.items())

    return answer, optimiser_step(module, loss), sum(p.numel() for p in module.parameters())


def peak_memory(adapter: str, rows: int) -> float:
    """The MB that two training steps in this process add at the peak."""
    torch.set_num_threads(1)
    _, step, _ = answer_and_step(adapter, rows)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step()
    step()
    return resident("VmHWM") - before


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="batch size")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    names = [BARE, "egmf"] if arguments.quick else [BARE, *(name for name in adapter_names() if name != BARE)]
    repetitions = 2 if arguments.quick else arguments.repetitions
    memory = {name: in_fork(peak_memory, name, arguments.rows) for name in names}
    parameters: dict[str, int] = {}
    single, batched, steps = {}, {}, {}
    for name in names:
        single[name], _, _ = answer_and_step(name, 1)
        batched[name], steps[name], parameters[name] = answer_and_step(name, arguments.rows)
    with torch_threads(arguments.threads):
        taken = [alternate(side, repetitions) for side in (single, batched, steps)]
    table = []
    for name in names:
        row = [name, f"{parameters[name]:,}"]
        for times in taken:
            row += [f"{1000 * statistics.median(times[name]):.1f}", f"{ratio(times[name], times[BARE]):.1f} ×"]
        table.append([*row, f"{memory[name]:.0f}"])
    head = ["adapter", "parameters", "one answer, ms", "against bare", f"{arguments.rows} answers, ms", "against bare"]
    head += [f"training step of {arguments.rows}, ms", "against bare", "peak of a training step, MB"]
    notes = (
        f"{arguments.threads} thread(s), float32, default options (LPGNet's students included in training), processor time, "
        "medians, all adapters in turn. Audio is (50, 25), vision (24, 396), transcript 24 tokens of 256, a window of 8 "
        "utterances for adapters that read one. The backbone's own share is in training_step.md."
    )
    report("adapter_cost", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
