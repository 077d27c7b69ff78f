"""How many times faster than real time are features extracted, per descriptor, on one core and with two workers?

The corpus is made in a temporary folder by the project's own generator (clips of a few seconds). Decoding counts.
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from common import options, report

from llm_mer.data.feature_settings import NONE, FeatureSettings
from llm_mer.data.schema import SAMPLE_RATE, Utterance
from llm_mer.data.sources.manifest import read_manifest
from llm_mer.data.sources.synthetic.corpus import CorpusConfig, make_corpus, write_clip
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.features.extract import ExtractConfig, extract
from llm_mer.features.extractor import Extractor
from llm_mer.features.media import read_audio, read_frames

LARGE = 720


def settings_of(descriptor: str) -> FeatureSettings:
    """One descriptor and nothing else."""
    if descriptor == "hog_flow":
        return FeatureSettings(audio=NONE, vision="hog_flow")
    return FeatureSettings(audio=descriptor, vision=NONE)


def enlarge(utterances: list[Utterance], folder: Path) -> list[Utterance]:
    """The same clips as 720 × 720 pictures at 24 a second, so that decoding weighs what it does in recorded video."""
    folder.mkdir()
    found = []
    for utterance in utterances:
        assert utterance.vision is not None
        frames = read_frames(utterance.vision, 24.0)
        pixels = np.stack([cv2.resize(p, (LARGE, LARGE), interpolation=cv2.INTER_CUBIC) for p in frames.pixels])
        path = folder / f"{utterance.id}.mp4"
        with path.open("wb") as stream:
            write_clip(stream, pixels, read_audio(utterance.vision), 24, SAMPLE_RATE)
        found.append(replace(utterance, audio=str(path), vision=str(path)))
    return found


def seconds_of(utterances: list[Utterance]) -> float:
    """Seconds of sound in all."""
    return sum(len(read_audio(str(utterance.audio))) for utterance in utterances) / SAMPLE_RATE


def on_one_core(descriptor: str, utterances: list[Utterance]) -> float:
    """Processor seconds for all utterances in this process, loading not counted."""
    cv2.setNumThreads(1)
    extractor = Extractor(settings_of(descriptor))
    extractor(utterances[0])
    began = time.process_time()
    for utterance in utterances:
        if extractor(utterance).rejected:
            raise RuntimeError(f"{utterance.id} was rejected")
    return time.process_time() - began


def with_workers(descriptor: str, utterances: list[Utterance], copies: int, folder: Path) -> tuple[float, float]:
    """Wall seconds of a whole ``extract`` call with two workers, and processor seconds of the workers."""
    several = [replace(u, id=f"{u.id}-{i}") for i in range(copies) for u in utterances]
    config = ExtractConfig(**settings_of(descriptor).to_dict(), output=str(folder), workers=2)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    extract(config, several, progress=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--copies", type=int, default=5, help="copies of the corpus for the two workers")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    copies, quick = arguments.copies, arguments.quick
    table = []
    with tempfile.TemporaryDirectory() as scratch, torch_threads(arguments.threads):
        config = CorpusConfig(output=f"{scratch}/corpus", utterances_per_language=60, languages=["en"], workers=1)
        utterances = list(read_manifest(make_corpus(config, progress=False)))
        utterances = utterances[:8] if quick else utterances
        sets = {f"{config.size} × {config.size}, {config.fps} a second": utterances}
        if not quick:
            sets[f"{LARGE} × {LARGE}, 24 a second"] = enlarge(utterances[:12], Path(scratch) / "large")
        for name, clips in sets.items():
            total = seconds_of(clips)
            for descriptor in ("egemaps", "librosa", "hog_flow") if clips is utterances else ("hog_flow",):
                one = min(on_one_core(descriptor, clips) for _ in range(1 if quick else 3))
                row = [descriptor, name, len(clips), f"{total:.0f}", f"{total / one:.0f} ×"]
                if quick:
                    row += ["", "", ""]
                else:
                    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
                        pair = list(pool.map(on_one_core, [descriptor] * 2, [clips] * 2))
                    wall, used = with_workers(descriptor, clips, copies, Path(scratch) / "store")
                    start = used - copies * sum(pair) / 2
                    row += [f"{2 * total / max(pair):.0f} ×", f"{start:.0f}", f"{copies * total / wall:.0f} ×"]
                table.append(row)
                print(*row, file=sys.stderr, flush=True)
    head = ["descriptor", "pictures", "clips", "seconds of sound", "one core"]
    head += ["two processes", "start of two workers, s", "whole command, two workers, this machine's load"]
    notes = (
        "× real time: seconds of sound by seconds of work. `one core` is processor time without start-up, best of three; "
        "`two processes` is twice the sound by the slower one's processor time, both at work at once. `whole command` is "
        f"wall time of `extract` over {copies} copies of the clips, spawning and importing and the written store included, "
        "while other work held the cores; `start` is the workers' processor time that was not extraction."
    )
    report("extraction", __doc__, head, table, notes, quick)


if __name__ == "__main__":
    main()
