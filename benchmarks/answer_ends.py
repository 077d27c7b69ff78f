"""Do answers change when labels are scored without the token that ends them (``--answer_end false``)?

python benchmarks/answer_ends.py --checkpoint runs/quickstart/egmf --data runs/quickstart/features
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from common import report

from llm_mer.data.store import UtteranceStore
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="a store the checkpoint reads")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    utterances = list(UtteranceStore.open(arguments.data).split(arguments.split))
    answers: dict[bool, list[Prediction]] = {}
    seconds: dict[bool, float] = {}
    for end in (True, False):
        pipeline = MerPipeline.from_pretrained(arguments.checkpoint, answer_end=end, batch_size=32)
        began = time.process_time()
        answers[end] = pipeline(utterances)
        seconds[end] = time.process_time() - began
    rows = []
    for task in pipeline.tasks:
        pairs = [(a, b) for a, b in zip(answers[True], answers[False], strict=True) if a.task == task.name]
        same = sum(a.value == b.value for a, b in pairs)
        gaps = [np.abs(np.exp(a.log_probabilities) - np.exp(b.log_probabilities)).max() for a, b in pairs]
        rows.append([task.name, len(pairs), len(pairs) - same, f"{max(gaps):.4f}"])
    notes = (
        f"Processor time without ends ÷ with them: {seconds[False] / seconds[True]:.2f} (adapter and collation included)."
    )
    report(
        "answer_ends",
        __doc__,
        ["task", "n", "values that differ", "largest difference of a probability"],
        rows,
        notes,
        False,
    )


if __name__ == "__main__":
    main()
