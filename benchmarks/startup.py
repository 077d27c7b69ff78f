"""What a command costs before it does anything: fresh processes, each beside the imports that no way leads around.

    python benchmarks/startup.py --checkpoint runs/quickstart/egmf

Median wall seconds over interleaved repetitions, each in a process of its own; the first round, which fills the disk's
cache, is left out.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from common import options, report

LOADING = """
import torch, transformers
from pathlib import Path
from llm_mer.checkpoints.backbone_reference import find_backbone
from llm_mer.checkpoints.description import CheckpointDescription
folder = Path({checkpoint!r})
source = find_backbone(CheckpointDescription.load(folder).backbone, folder, None)
transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(folder)
"""
LOADED = "import torch, transformers; load backbone and tokenizer"


@dataclass(frozen=True)
class Start:
    """A program, and its limit: seconds, or a multiple of :data:`LOADED`."""

    name: str
    words: list[str]
    seconds: float | None = None
    multiple: float | None = None


def starts(checkpoint: str) -> list[Start]:
    """What is measured."""
    text = ["--checkpoint", checkpoint, "--text", "I had no idea at all"]
    return [
        Start("import torch, transformers", ["-c", "import torch, transformers"]),
        Start(LOADED, ["-c", LOADING.format(checkpoint=checkpoint)]),
        Start("llm-mer --help", ["-m", "llm_mer", "--help"], seconds=2.0),
        Start("llm-mer train --help", ["-m", "llm_mer", "train", "--help"], seconds=2.0),
        Start("llm-mer infer --text, to its answer", ["-m", "llm_mer", "infer", *text], multiple=1.5),
    ]


def measure(found: list[Start], repetitions: int) -> dict[str, float]:
    """Median seconds by name."""
    seconds: dict[str, list[float]] = {start.name: [] for start in found}
    for turn in range(repetitions + 1):
        for start in found:
            began = time.perf_counter()
            subprocess.run([sys.executable, *start.words], check=True, capture_output=True)
            if turn:
                seconds[start.name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--checkpoint", default="runs/quickstart/egmf", help="a checkpoint of the quickstart")
    arguments = parser.parse_args()
    found = starts(arguments.checkpoint)
    seconds = measure(found, 1 if arguments.quick else 5)
    rows = []
    for start in found:
        took, limit, shown = seconds[start.name], start.seconds, ""
        if start.multiple is not None:
            limit = start.multiple * seconds[LOADED]
            shown = f"{start.multiple:g} × the loading above; is {took / seconds[LOADED]:.2f} ×"
        elif limit is not None:
            shown = f"{limit:g} s"
        rows.append([start.name, f"{took:.2f}", shown, "" if limit is None else "met" if took <= limit else "missed"])
    report("startup", __doc__ or "", ["program", "seconds", "limit", ""], rows, "", arguments.quick)


if __name__ == "__main__":
    main()
