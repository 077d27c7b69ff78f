"""Does ``llm-mer prepare`` hold resident memory flat, and how many utterances a second, at 1 ×, 10 × and 100 × MOSI's size?

Synthetic files in each format's real layout are written to a temporary folder at each scale and prepared in a process of its
own: ``mosi`` (an ``.npz`` of 273 features a sentence, each sentence in two languages), ``meld`` (a CSV file, text alone) and
``mmsa`` (one pickle, word-aligned audio (50, 5) and vision (50, 20), padded). A pickle is read whole, so its memory is
bounded by the file: ``peak / file`` says by how many times. The last row has text embeddings (50, 768) too, as published.
"""

from __future__ import annotations

import csv
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import in_fork, options, report

from llm_mer.backbones.tiny_text import generate_lines
from llm_mer.data.prepare import PrepareConfig, prepare
from llm_mer.data.store import UtteranceStore
from llm_mer.prompting.tasks import get_task

MOSI, SEGMENTS, STEPS = 2199, 24, 50
BLOCK = 2199
"""Rows made at a time, so that writing the files does not need them in memory."""


def _number(i: int) -> tuple[str, int]:
    return f"video{i // SEGMENTS:06d}", i % SEGMENTS


def write_mosi(folder: Path, count: int, lines: list[str]) -> Path:
    """``index.csv`` and ``features.npz``."""
    import zipfile

    random = np.random.default_rng(0)
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "video", "segment", "split", "score", "english", "chinese"])
        for i in range(count):
            video, segment = _number(i)
            score = round(float(random.uniform(-3, 3)), 1)
            writer.writerow([f"{video}_{segment}", video, segment, "train", score, lines[i % len(lines)], "我们星期一见面"])
    with zipfile.ZipFile(folder / "features.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, size in (("text", 100), ("audio", 73), ("vision", 100)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
                np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
                for _ in range(0, count, BLOCK):
                    member.write(random.standard_normal((BLOCK, size), dtype=np.float32).tobytes())
    return folder


def write_meld(folder: Path, count: int, lines: list[str]) -> Path:
    """``train_sent_emo.csv``."""
    path = folder / "train_sent_emo.csv"
    labels = get_task("meld").label_names
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"])
        for i in range(count):
            row = [i, lines[i % len(lines)], f"Speaker {i % 7}", labels[i % 7], "positive", i // SEGMENTS, i % SEGMENTS]
            writer.writerow(row)
    return path


def write_mmsa(folder: Path, count: int, lines: list[str], text: bool = False) -> Path:
    """``aligned_50.pkl`` with one split, as many steps a sentence as MOSI has words."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.gamma(2.2, 12 / 2.2, count), 1, STEPS).astype(int)
    used = np.arange(STEPS)[None] < lengths[:, None]
    tokens = np.zeros((count, 3, STEPS), dtype=np.float32)
    tokens[:, 1] = used
    content = {
        "raw_text": [lines[i % len(lines)] for i in range(count)],
        "id": ["{}$_${}".format(*_number(i)) for i in range(count)],
        "regression_labels": random.uniform(-3, 3, count).astype(np.float32),
        "text_bert": tokens,
    }
    for name, size in (("audio", 5), ("vision", 20), *((("text", 768),) if text else ())):
        values = random.standard_normal((count, STEPS, size), dtype=np.float32)
        values *= used[:, :, None]
        content[name] = values
    path = folder / "aligned_50.pkl"
    with path.open("wb") as stream:
        pickle.dump({"train": content}, stream, protocol=4)
    return path


def memory(field: str) -> float:
    """A line of ``/proc/self/status`` in MB (Linux)."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(name: str, path: Path, output: Path) -> dict[str, float]:
    """Prepare once and say what it took; the peak is that of this process alone, less what it began with."""
    Path("/proc/self/clear_refs").write_text("5")  # the parent's peak is forgotten
    before, began = memory("VmRSS"), time.process_time()
    folder = prepare(PrepareConfig(name, str(path), str(output)))
    seconds = time.process_time() - began
    count = sum(UtteranceStore.open(folder).info.counts.values())
    return {"count": count, "seconds": seconds, "peak": memory("VmHWM") - before}


def main() -> None:
    arguments = options(__doc__).parse_args()
    lines = [text.replace("\n", " ") for text in generate_lines(0, 3000)]
    scales = (1, 2) if arguments.quick else (1, 10, 100)
    writers: dict[str, Callable[[Path, int, list[str]], Path]] = {
        "mosi": write_mosi,
        "meld": write_meld,
        "mmsa": write_mmsa,
    }
    cases = [(name, name, scale, write) for name, write in writers.items() for scale in scales]
    if not arguments.quick:
        cases.append(
            ("mmsa", "mmsa, with text", 1, lambda folder, count, texts: write_mmsa(folder, count, texts, text=True))
        )
    with tempfile.TemporaryDirectory() as scratch:
        # Imports that a first call pays for.
        first = Path(scratch) / "first"
        first.mkdir()
        prepare(PrepareConfig("meld", str(write_meld(first, 10, lines)), str(first / "store")))
        table = [one(Path(scratch), *case, lines) for case in cases]
    head = ["format", "data", "utterances", "files, MB", "utterances a second", "peak memory, MB", "peak / file"]
    notes = (
        "One core, processor time. `peak memory` is the highest resident memory of the process above what it had before "
        "`prepare`, imports done. `mosi` has two utterances a sentence."
    )
    report("data_preparation", __doc__, head, table, notes, arguments.quick)


def one(scratch: Path, name: str, shown: str, scale: int, write: Callable[..., Path], lines: list[str]) -> list[str]:
    """A row of the table; its files are gone when it is done."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        path = in_fork(write, source, scale * MOSI, lines)
        size = sum(file.stat().st_size for file in source.iterdir()) / 2**20
        found = in_fork(measure, name, path, Path(folder) / "store")
    rate = found["count"] / found["seconds"]
    row = [shown, f"{scale} ×", f"{found['count']:,}", f"{size:.0f}", f"{rate:.0f}", f"{found['peak']:.0f}"]
    row.append(f"{found['peak'] / size:.2f}" if name == "mmsa" else "")
    print(*row, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
