"""How many utterances a second does the loader give, and does resident memory stay flat, at 1 ×, 10 × and 100 × the data?

A store of MOSI's size (2,199 utterances, word-aligned audio (T, 74) and vision (T, 47)) is written to a temporary folder
at each scale, then read at random through ``MerDataset`` and ``MerCollator``, prompts tokenised, in a process of its own.
Resident memory is split: anonymous pages, which are the program's own, and pages of the memory-mapped file, which the
system takes back whenever it needs them.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import options, report

from llm_mer.backbones.tiny import train_tokenizer
from llm_mer.backbones.tiny_text import generate_lines
from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.model.collator import MerCollator
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts

MOSI, AUDIO, VISION, WORDS = 2199, 74, 47, 12
BATCH = 16


def utterances(count: int, lines: list[str]) -> Iterator[Utterance]:
    """Random features, about as many steps as MOSI's utterances have words."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((4096, AUDIO + VISION), dtype=np.float32)
    for i in range(count):
        steps = int(np.clip(generator.gamma(2.2, WORDS / 2.2), 1, 60))
        begin = int(generator.integers(len(noise) - steps))
        rows = noise[begin : begin + steps]
        yield Utterance(
            id=f"video{i // 24:05d}_{i % 24}",
            text=lines[i % len(lines)],
            audio_features=rows[:, :AUDIO],
            vision_features=rows[:, AUDIO:],
            labels={"sentiment": float(np.round(generator.uniform(-3, 3), 1))},
        )


def resident() -> dict[str, float]:
    """``RssAnon`` and ``RssFile`` of this process in MB (Linux)."""
    text = Path("/proc/self/status").read_text()
    return {key: int(value) / 1024 for key, value in re.findall(r"(RssAnon|RssFile):\s+(\d+)", text)}


def read(folder: Path, lines: list[str], batches: int, answer: Any) -> None:
    """Open the store, read random batches, and send what was measured."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(lines, 800)
    start = resident()
    began = time.process_time()
    store = UtteranceStore.open(folder)
    dataset = MerDataset(store.split("train"), [get_task("sentiment")])
    processor = MerProcessor(
        tokenizer=tokenizer,
        tasks=dataset.tasks,
        prompts=load_prompts("short"),
        feature_sizes={"text": 128, **store.info.feature_sizes},
        statistics=store.info.statistics,
        num_pseudo_tokens=4,
    )
    collator = MerCollator(dataset, processor)
    opening = time.process_time() - began
    opened = resident()
    order = np.random.default_rng(1).integers(len(dataset), size=(batches, BATCH))
    warm = max(batches // 20, 1)
    for rows in order[:warm]:
        collator([{"question": int(i)} for i in rows])
    settled = resident()
    began = time.process_time()
    for rows in order[warm:]:
        collator([{"question": int(i)} for i in rows])
    seconds = time.process_time() - began
    done = resident()
    answer.send(
        {
            "opening": opening,
            "rate": (batches - warm) * BATCH / seconds,
            "index": opened["RssAnon"] - start["RssAnon"],
            "reading": done["RssAnon"] - settled["RssAnon"],
            "file": done["RssFile"] - opened["RssFile"],
        }
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, default=1500, help="random batches of 16 to read")
    arguments = parser.parse_args()
    lines = [text.replace("\n", " ") for text in generate_lines(0, 3000)]
    context = get_context("fork")
    scales, batches = ((1, 2), 60) if arguments.quick else ((1, 10, 100), arguments.batches)
    table = []
    with tempfile.TemporaryDirectory() as scratch:
        write_store(utterances(1, lines), Path(scratch) / "first")  # imports what writing needs
        for scale in scales:
            folder = Path(scratch) / f"store{scale}"
            began = time.process_time()
            write_store(utterances(scale * MOSI, lines), folder)
            writing = time.process_time() - began
            size = sum(f.stat().st_size for f in folder.iterdir()) / 2**20
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=read, args=(folder, lines, batches, sender))
            process.start()
            sender.close()
            found = receiver.recv()
            process.join()
            row = [f"{scale} ×", f"{scale * MOSI:,}", f"{size:.0f}", f"{scale * MOSI / writing:.0f}"]
            row += [f"{found['opening']:.2f}", f"{found['rate']:.0f}"]
            row += [f"{found[key]:.1f}" for key in ("index", "reading", "file")]
            table.append(row)
            print(*row, file=sys.stderr, flush=True)
    head = ["data", "utterances", "store, MB", "written a second", "opening, s", "read a second"]
    head += ["index, MB", "grown while reading, MB", "file pages mapped, MB"]
    notes = (
        f"One core, processor time; {batches} batches of {BATCH} at random with replacement, 5 % of them before the clock "
        "and `grown while reading` begin; the file was in the page cache. `index` is what opening adds to anonymous memory: "
        "ids, labels and turns of every utterance, one question each, no features."
    )
    report("data_loading", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
