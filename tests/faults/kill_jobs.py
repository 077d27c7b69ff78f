"""The commands that are killed: how each is called on a very small input, and what it has to end with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import build_backbone, make_utterances, options, training_options

OUTPUT = "output"
"""What a command writes, in a folder of its own."""
UNSTABLE = frozenset({"seconds", "train_seconds", "milliseconds_per_answer", "output_dir", "predictions_sha256"})
"""Keys of JSON whose values are readings of a clock, digests of files that hold some, or the place of a run."""


@dataclass(frozen=True)
class Inputs:
    """What the commands read, made once.

    Attributes:
        clips: manifest of sound files. texts: JSONL of utterances without media.
        store, backbone, checkpoint: folders. config: training YAML.
    """

    folder: Path

    @property
    def clips(self) -> Path:
        return self.folder / "clips.jsonl"

    @property
    def texts(self) -> Path:
        return self.folder / "texts.jsonl"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def backbone(self) -> Path:
        return self.folder / "backbone"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def config(self) -> Path:
        return self.folder / "training.yaml"

    def make(self) -> None:
        """Write what is not there yet; the checkpoint is last."""
        from llm_mer.cli.train import finetune
        from llm_mer.data.store import write_store

        if self.checkpoint.is_dir():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        build_backbone("llama", self.backbone)
        utterances = [*make_utterances("train", 24), *make_utterances("valid", 8), *make_utterances("test", 24)]
        write_store(utterances, self.store)
        clips = [clip(self.folder / f"clip-{number}.wav", number) for number in range(8)]
        self.clips.write_text("".join(f"{json.dumps(clip)}\n" for clip in clips), encoding="utf-8")
        texts = [{"id": f"t{i}", "text": f"we meet at {i}", "emotion": ("joy", "anger")[i % 2]} for i in range(400)]
        self.texts.write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
        chosen = _training(self, self.folder / "unused")
        names = [word.removeprefix("--") for word in chosen if word.startswith("--")]
        values = _values(chosen)
        self.config.write_text(yaml.safe_dump({k: v for k, v in zip(names, values, strict=True) if k != "output_dir"}))
        finetune(_training(self, self.checkpoint, save_strategy="no"))


def _values(words: list[str]) -> list[Any]:
    """The values of a command line's options, as YAML reads them."""
    found: list[list[Any]] = []
    for word in words:
        if word.startswith("--"):
            found.append([])
        else:
            found[-1].append(yaml.safe_load(word))
    return [value if len(value) > 1 else value[0] for value in found]


def clip(path: Path, seed: int) -> dict[str, Any]:
    """A quarter of a second of noise as a WAV file, and its line in a manifest."""
    import wave

    samples = np.random.default_rng(seed).integers(-8000, 8000, 4000).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16_000)
        stream.writeframes(samples.tobytes())
    return {"id": path.stem, "text": "we meet on monday", "audio": path.name, "emotion": "joy", "language": "en"}


def _training(inputs: Inputs, output: Path, **changes: Any) -> list[str]:
    chosen: dict[str, Any] = {
        "dropout": 0.2,
        "modality_dropout": 0.2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "learning_rate": 0.005,
    }
    return training_options(inputs.store, inputs.backbone, output, **{**chosen, **changes})


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
        words: its command line, given the inputs and the place it writes.
        results: the files under that place that have to be the same, as patterns.
        exactly: to the byte; else JSON, line by line, number by number, without clock readings and places.
    """

    words: Callable[[Inputs, Path], list[str]]
    results: tuple[str, ...]
    exactly: bool = True

    def outcome(self, output: Path) -> dict[str, Any]:
        """What a finished run is compared by: the content of each result by its path."""
        files = [output] if output.is_file() else sorted({p for pattern in self.results for p in output.rglob(pattern)})
        found: dict[str, Any] = {}
        for path in files:
            if path.is_file():
                name = path.name if path == output else path.relative_to(output).as_posix()
                found[name] = path.read_bytes() if self.exactly else _read_json(path)
        return found


def _read_json(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    return [_without_unstable(json.loads(part)) for part in (text.splitlines() if path.suffix != ".json" else [text])]


def _without_unstable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_unstable(v) for k, v in value.items() if k not in UNSTABLE}
    return [_without_unstable(v) for v in value] if isinstance(value, list) else value


JOBS: dict[str, Job] = {
    "extract": Job(
        lambda inputs, output: ["extract", *options(manifest=inputs.clips, output=output, vision="none", workers=1)],
        ("*",),
    ),
    "prepare": Job(lambda inputs, output: ["prepare", "manifest", str(inputs.texts), *options(output=output)], ("*",)),
    "evaluate": Job(
        lambda inputs, output: [
            "evaluate",
            *options(checkpoint=inputs.checkpoint, data=inputs.store, output=output, batch_size=2, resamples=200),
            *options(conditions=["without:text", "shuffle:audio", "missing:0.5"]),
        ],
        ("predictions*.jsonl", "evaluation.json"),
        exactly=False,
    ),
    "infer": Job(
        lambda inputs, output: [
            "infer",
            *options(checkpoint=inputs.checkpoint, manifest=inputs.texts, output=output, batch_size=4, read_ahead=1),
        ],
        ("*",),
        exactly=False,
    ),
    "compare": Job(
        lambda inputs, output: [
            "compare",
            *options(config=inputs.config, output=output, adapters=["egmf", "lsgmer"], seeds=[1, 2], resamples=100),
            *options(overrides=["save_strategy=no"]),
        ],
        ("comparison.json", "predictions*.jsonl"),
        exactly=False,
    ),
    "train": Job(
        lambda inputs, output: ["train", *_training(inputs, output, resume_from_checkpoint="true")],
        ("*.safetensors",),
    ),
}
