"""How far are answers in half precision from those in float32, and does the size of the batch move them?

Every utterance is answered in each precision, once in batches of 32 and once alone. A probability's distance is the largest
over the admissible answers of a question; the log's is over those that float32 gives 0.001 or more.

python benchmarks/precision.py --checkpoint runs/quickstart/egmf --data runs/quickstart/features
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from common import report

from llm_mer.checkpoints.precision import PRECISIONS
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction

BATCHES = (32, 1)
KNOWN = 1e-3
"""Probability from which on the log's distance counts: below it a rounding is large in the log and nothing else."""


def distances(one: list[Prediction], other: list[Prediction]) -> tuple[int, float, float, float]:
    """How many values differ; the mean and largest distance of a probability, the largest of a log-probability."""
    differing, shares, logs = 0, [], []
    for a, b in zip(one, other, strict=True):
        assert (a.id, a.task) == (b.id, b.task)
        differing += a.value != b.value
        before, now = np.array(a.log_probabilities), np.array(b.log_probabilities)
        shares.append(float(np.abs(np.exp(before) - np.exp(now)).max()))
        logs.append(float(np.abs(before - now)[before >= np.log(KNOWN)].max()))
    return differing, float(np.mean(shares)), max(shares), max(logs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="a store or FORMAT:PATH the checkpoint reads")
    parser.add_argument("--backbone", help="its folder, where it is not in the checkpoint")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="only the first so many utterances")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="prints, and writes no result")
    arguments = parser.parse_args()
    utterances = find_split(read_utterances(arguments.data)[0], arguments.split, arguments.data)
    asked = [utterance for _, utterance in zip(range(arguments.limit or len(utterances)), utterances, strict=False)]
    answers: dict[tuple[str, int], list[Prediction]] = {}
    seconds: dict[str, float] = {}
    with torch_threads(1):
        for precision in PRECISIONS[1:]:
            for size in BATCHES:
                pipeline = MerPipeline.from_pretrained(
                    arguments.checkpoint,
                    backbone=arguments.backbone,
                    device=arguments.device,
                    dtype=precision,
                    batch_size=size,
                )
                began = time.process_time()
                answers[precision, size] = pipeline(asked)
                seconds.setdefault(precision, time.process_time() - began)
                print(precision, size, f"{time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
    rows = []
    for precision in PRECISIONS[1:]:
        for task in pipeline.tasks:
            first, again, exact = (
                [p for p in answers[key] if p.task == task.name]
                for key in ((precision, BATCHES[0]), (precision, BATCHES[1]), ("float32", BATCHES[0]))
            )
            changed, mean, most, log = distances(exact, first)
            moved, _, between, _ = distances(first, again)
            own = [precision, task.name, len(first), changed, f"{mean:.2g}", f"{most:.2g}", f"{log:.2g}"]
            rows.append([*own, moved, f"{between:.2g}"])
    head = ["precision", "task", "n", "values other than float32's", "mean distance of a probability", "largest"]
    head += ["largest of a log-probability", "values other than in batches of 1", "largest distance of a probability"]
    backbone = pipeline.description.backbone
    times = ", ".join(f"{name} {seconds[name] / seconds['float32']:.2f}" for name in PRECISIONS[1:])
    notes = (
        f"Backbone `{'none' if backbone is None else backbone.name}`, split {arguments.split}, {len(asked)} utterances, "
        f"device {arguments.device}. Processor time against float32, batches of {BATCHES[0]}: {times}."
    )
    report("precision", __doc__, head, rows, notes, arguments.quick)


if __name__ == "__main__":
    main()
