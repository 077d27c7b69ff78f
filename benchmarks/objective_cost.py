"""What does a training step over the distribution of all admissible answers cost, against one over the true answer's tokens?

Aim: at most 1.3 × for seven labels. Both sides take the step of the trainer (weighted losses, clipping, AdamW) on the same
questions with their real prompts; only the objective differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import FEATURES, Size, alternate, backbone, milliseconds, options, ratio, report

from llm_mer.backbones.tiny import generate_lines, train_tokenizer
from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

SENTENCE = "well I did not think that you would come back here so soon after all that was said"


def utterances(count: int) -> list[Utterance]:
    """Random features, and a sentence of 18 words."""
    random, labels = np.random.default_rng(0), ("joy", "anger", "sadness", "neutral")
    return [
        Utterance(
            id=f"{index}",
            split="train",
            language="en",
            text=SENTENCE,
            labels={"emotion": labels[index % 4], "sentiment": round(float(random.uniform(-3, 3)), 1)},
            **{f"{name}_features": random.normal(size=shape).astype(np.float32) for name, shape in FEATURES.items()},
        )
        for index in range(count)
    ]


def step(trainer: Any, rows: int) -> tuple[Callable[[], None], tuple[int, int]]:
    """A step on the first questions, and how many places its rows have."""
    model, collator = trainer.model.train(), trainer.data_collator.collator
    batch = collator([{"question": index} for index in range(rows)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def taken() -> None:
        optimizer.zero_grad()
        trainer.compute_loss(model, dict(batch)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return taken, tuple(batch["input_ids"].shape)


def measure(size: Size, folder: Path, rows: int, repetitions: int) -> list[list[str]]:
    """One line for each kind of task."""
    saved = folder / f"backbone-{size.layers}-{size.hidden}"
    backbone(size).save_pretrained(saved)
    train_tokenizer(list(generate_lines(0, 600)), 1000).save_pretrained(saved)
    table = []
    for task in ("emotion", "sentiment"):
        sides, shapes = {}, {}
        for objective in ("tokens", "answers"):
            given = {"data": folder / "store", "backbone": saved, "tasks": task, "objective": objective}
            given |= {
                "eval_strategy": "no",
                "save_strategy": "no",
                "load_best_model_at_end": "false",
                "output_dir": folder / "o",
            }
            trainer = build_trainer(
                parse_arguments([part for name, value in given.items() for part in (f"--{name}", str(value))])
            )
            sides[objective], shapes[objective] = step(trainer, rows)
        taken = alternate(sides, repetitions)
        places = " and ".join(f"{count} × {width}" for count, width in shapes.values())
        line = [task, str(size), places, *(milliseconds(taken[name]) for name in sides)]
        table.append([*line, f"{ratio(taken['answers'], taken['tokens']):.2f} ×"])
        print(*table[-1], file=sys.stderr, flush=True)
    return table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="batch size")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    sizes = [Size(2, 128, 4000)] if arguments.quick else [Size(), Size(8, 512)]
    table: list[list[str]] = []
    with torch_threads(arguments.threads), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(utterances(arguments.rows), folder / "store")
        for size in sizes:
            table += measure(size, folder, arguments.rows, 2 if arguments.quick else arguments.repetitions)
    head = ["task", "layers × size", "places, tokens and answers", "tokens, ms", "answers, ms", "answers ÷ tokens"]
    notes = (
        f"EGMF of default options, prompt style `short`, vocabulary {sizes[-1].vocabulary}, {arguments.threads} thread(s), "
        "float32, random weights; processor time, medians, both sides in turn; the ratio is the median within a turn."
    )
    report("objective_cost", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
