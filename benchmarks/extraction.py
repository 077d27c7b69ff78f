"""How many times faster than real time are features extracted, per descriptor, on one core and with two workers?

The corpus is made in a temporary folder by the project's own generator (clips of a few seconds). Decoding counts.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from common import options, report, threads

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import read_manifest
from llm_mer.data.sources.synthetic.corpus import CorpusConfig, make_corpus, write_clip
from llm_mer.features.extract import NONE, ExtractConfig, Extractor, FeatureSettings, extract
from llm_mer.features.media import SAMPLE_RATE, read_audio, read_frames

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
        write_clip(path, pixels, read_audio(utterance.vision), 24, SAMPLE_RATE)
        found.append(replace(utterance, audio=str(path), vision=str(path)))
    return found


def seconds_of(utterances: list[Utterance]) -> float:
    """Seconds of sound in all."""
    return sum(len(read_audio(str(utterance.audio))) for utterance in utterances) / SAMPLE_RATE


def on_one_core(descriptor: str, utterances: list[Utterance]) -> float:
    """Processor seconds for all utterances in this process, loading not counted."""
    extractor = Extractor(settings_of(descriptor))
    extractor(utterances[0])
    began = time.process_time()
    for utterance in utterances:
        if extractor(utterance).rejected:
            raise RuntimeError(f"{utterance.id} was rejected")
    return time.process_time() - began


def with_workers(descriptor: str, utterances: list[Utterance], repeats: int, folder: Path) -> float:
    """Wall seconds of the whole ``extract`` call with two workers over ``repeats`` copies of the utterances."""
    copies = [replace(u, id=f"{u.id}-{i}") for i in range(repeats) for u in utterances]
    settings = settings_of(descriptor)
    config = ExtractConfig(**settings.to_dict(), output=str(folder), workers=2)
    began = time.perf_counter()
    extract(config, copies, progress=False)
    return time.perf_counter() - began


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="copies of the corpus for the two workers")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    table = []
    with tempfile.TemporaryDirectory() as scratch, threads(arguments.threads):
        cv2.setNumThreads(arguments.threads)
        config = CorpusConfig(output=f"{scratch}/corpus", utterances_per_language=60, languages=["en"])
        utterances = list(read_manifest(make_corpus(config, progress=False)))
        utterances = utterances[:8] if arguments.quick else utterances
        sets = {f"{config.size} × {config.size}, {config.fps} a second": utterances}
        if not arguments.quick:
            sets[f"{LARGE} × {LARGE}, 24 a second"] = enlarge(utterances[:16], Path(scratch) / "large")
        for name, clips in sets.items():
            total = seconds_of(clips)
            for descriptor in ("egemaps", "librosa", "hog_flow"):
                one = min(on_one_core(descriptor, clips) for _ in range(1 if arguments.quick else 3))
                row = [descriptor, name, len(clips), f"{total:.0f}", f"{total / one:.0f} ×"]
                if arguments.quick:
                    row += ["", "", ""]
                else:
                    few, many = (
                        with_workers(descriptor, clips, n, Path(scratch) / f"store{n}") for n in (1, arguments.repeats)
                    )
                    extra = (arguments.repeats - 1) * total
                    row += [f"{arguments.repeats * total / many:.0f} ×", f"{extra / (many - few):.0f} ×"]
                    row += [f"{few - (many - few) / (arguments.repeats - 1):.1f}"]
                table.append(row)
                print(*row, file=sys.stderr, flush=True)
    head = ["descriptor", "pictures", "clips", "seconds of sound", "one core", "two workers, whole command"]
    head += ["two workers, once started", "start, s"]
    notes = (
        "× real time: seconds of sound by seconds of work. `one core` is processor time without start-up, best of three; "
        f"the two workers are timed by wall clock (other work shared the cores) over {arguments.repeats} copies of the clips, the "
        "store written included. `start` is what remains for no clips at all: two processes importing the libraries."
    )
    report("extraction", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
