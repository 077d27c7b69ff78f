"""Does GatedxLSTM answer utterance 10 000 of a dialogue as fast, and in as little memory, as utterance 10?

One dialogue of two speakers, three modalities, taken utterance by utterance through ``GatedXLSTMAdapter.stream``. Beside it
the adapter's parallel mode over the whole dialogue so far, which is what re-reading everything at each utterance costs.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from common import FEATURES, Size, backbone, mer_model, options, report

from llm_mer.adapters.base import ConversationContext, FusionInputs, ModalitySequence
from llm_mer.adapters.gated_xlstm import GatedXLSTMAdapter, GatedXLSTMStream, HeardUtterance
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.modeling_mer import fusion_adapter_of

PLACES = (10, 100, 1_000, 10_000)
AROUND = 10
"""Utterances timed at each place; their median is reported."""


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def kept_bytes(stream: GatedXLSTMStream) -> int:
    """What the stream holds between two utterances."""
    heard = [*stream.recent, *stream.earlier.values()]
    return sum(v.numel() * v.element_size() for u in heard for v in u.vectors.values())


def whole(adapter: GatedXLSTMAdapter, length: int, vectors: dict[str, torch.Tensor]) -> FusionInputs:
    """The dialogue so far as one window, as the parallel mode reads it."""
    target = length - 1
    speakers = (torch.arange(length) + target).remainder(2)[None]
    full = torch.ones(1, length, dtype=torch.bool)
    context = ConversationContext(mask=full, speakers=speakers, target=torch.tensor([target]))
    inputs = FusionInputs(context=context)
    for name, values in vectors.items():
        setattr(context, name, values[None, :length])
        setattr(context, f"{name}_mask", full)
        step = torch.zeros(1, 1, adapter.config.feature_sizes[name])
        setattr(inputs, name, ModalitySequence(step, torch.ones(1, 1, dtype=torch.bool)))
    return inputs


def main() -> None:
    parser = options(__doc__)
    arguments = parser.parse_args()
    size = Size(2, 128, 4000)
    adapter = fusion_adapter_of(mer_model(backbone(size), "gated_xlstm")).eval()
    assert isinstance(adapter, GatedXLSTMAdapter)
    widths = {"text": size.hidden, **{name: 2 * width for name, (_, width) in FEATURES.items()}}
    places = [p for p in PLACES if p <= (100 if arguments.quick else 10_000)]
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(places[-1] + AROUND, width, generator=generator) for name, width in widths.items()}
    stream, at_once, table = adapter.stream(), adapter.stream(recurrent=False), []
    with torch_threads(arguments.threads), torch.no_grad():
        taken: list[float] = []
        quick: list[float] = []
        for turn in range(places[-1] + AROUND):
            said = {name: values[turn] for name, values in vectors.items()}
            if not any(place - AROUND < turn + 1 - AROUND <= place for place in (0, *places)):
                stream.hear(HeardUtterance(stream.turn, turn % 2, said))  # all that a step leaves behind
                stream.turn += 1
            else:
                began = time.process_time()
                streamed = stream.step(turn % 2, said)
                taken.append(1000 * (time.process_time() - began))
            began = time.process_time()
            at_once.step(turn % 2, said)
            quick.append(1000 * (time.process_time() - began))
            place = turn + 1 - AROUND
            if place not in places:
                continue
            began = time.process_time()
            parallel = adapter(whole(adapter, turn + 1, vectors))
            again = 1000 * (time.process_time() - began)
            apart = float((parallel.pseudo_tokens - streamed.pseudo_tokens).abs().max())
            table.append(
                [
                    f"{place:,}",
                    f"{statistics.median(taken[-AROUND:]):.1f}",
                    f"{statistics.median(taken[-AROUND:]) / statistics.median(taken[:AROUND]):.2f} ×",
                    f"{statistics.median(quick[-AROUND:]):.1f}",
                    f"{statistics.median(quick[-AROUND:]) / statistics.median(quick[:AROUND]):.2f} ×",
                    stream.kept,
                    f"{kept_bytes(stream) / 1024:.1f}",
                    f"{resident():.0f}",
                    f"{again:.1f}",
                    f"{apart:.0e}",
                ]
            )
    head = ["utterances so far", "recurrent, ms an utterance", "against the first ten", "at once, ms an utterance"]
    head += ["against the first ten", "utterances kept", "kept, KiB"]
    head += ["process, MiB", "parallel over the whole dialogue, ms", "largest difference to parallel"]
    notes = (
        f"{arguments.threads} thread(s), float32, default options, processor time, medians of {AROUND}. An utterance "
        "replays the steps of its three turns through the stacks, however long the dialogue: step by step (`recurrent`), or "
        "over all steps of what is kept (`at once`). Between the places the recurrent stream only takes utterances in. The "
        "parallel mode reads a window that grows."
    )
    report("streaming", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
