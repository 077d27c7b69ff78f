"""The commands that write, on very small inputs: how each is called, and what has to lie there before."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import build_backbone, make_utterances, options, training_options
from kill_jobs import clip

from llm_mer.cli.main import main


@dataclass(frozen=True)
class Inputs:
    """What the commands read, in ``folder``; the checkpoint lies elsewhere."""

    folder: Path
    checkpoint: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def make(self) -> None:
        """Write them, in a few seconds."""
        sys.path.insert(0, str(Path(__file__).parents[1] / "backbones" / "convert"))
        from test_llama2c import pieces, write_checkpoint, write_tokenizer_bin

        from llm_mer.data.store import write_store

        self.folder.mkdir(parents=True)
        build_backbone("llama", self / "backbone")
        write_store(
            [*make_utterances("train", 24), *make_utterances("valid", 8), *make_utterances("test", 24)], self / "store"
        )
        clips = [clip(self / f"clip-{number}.wav", number) for number in range(2)]
        (self / "clips.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in clips), encoding="utf-8")
        texts = [{"id": f"t{i}", "text": f"we meet at {i} " * 40, "emotion": ("joy", "anger")[i % 2]} for i in range(24)]
        (self / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
        answers = [{"id": u.id, "text": "joy"} for u in make_utterances("test", 24)]
        (self / "answers.jsonl").write_text("".join(f"{json.dumps(answer)}\n" for answer in answers), encoding="utf-8")
        write_checkpoint(self / "llama2c.bin")
        write_tokenizer_bin(self / "tokenizer.bin", pieces())
        values = yaml_values(training_options(self / "store", "none", "unused", auxiliary_head="true"))
        left_out = ("data", "output_dir", "seed", "adapter", "num_pseudo_tokens")
        kept = {name: value for name, value in values.items() if name not in left_out}
        (self / "training.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
        words = ["evaluate", *options(checkpoint=self.checkpoint, data=self / "store", output=self / "evaluation")]
        assert main([*words, *options(resamples=20)]) == 0


def yaml_values(words: list[str]) -> dict[str, Any]:
    """A command line of options as a YAML file has them."""
    found: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = []
        else:
            found[name].append(yaml.safe_load(word))
    return {name: values if name == "tasks" else values[0] for name, values in found.items()}


def nothing(inputs: Inputs, output: Path) -> None:
    """The place is empty before."""


def copy_of_checkpoint(inputs: Inputs, output: Path) -> None:
    shutil.copytree(inputs.checkpoint, output)


def checkpoint_without_record(inputs: Inputs, output: Path) -> None:
    copy_of_checkpoint(inputs, output)
    (output / "checksums.json").unlink()


@dataclass(frozen=True)
class WriteJob:
    """A command that writes.

    Attributes:
        words: its command line, given the inputs and the place it writes.
        before: makes what lies in that place before. slow: whether it takes more than a moment.
        keeps: names of what a command that was refused may leave for the next one to go on from.
    """

    words: Callable[[Inputs, Path], list[str]]
    before: Callable[[Inputs, Path], None] = nothing
    slow: bool = True
    keeps: tuple[str, ...] = ()


def _train(inputs: Inputs, output: Path, **changes: Any) -> list[str]:
    return ["train", *training_options(inputs / "store", inputs / "backbone", output, save_strategy="epoch", **changes)]


def _compared(inputs: Inputs, output: Path) -> list[str]:
    data = f"data={inputs / 'store'}"
    return options(config=inputs / "training.yaml", output=output, adapters=["egmf"], resamples=20, overrides=[data])


WRITE_JOBS: dict[str, WriteJob] = {
    "prepare": WriteJob(lambda i, out: ["prepare", "manifest", str(i / "texts.jsonl"), *options(output=out)], slow=False),
    "infer": WriteJob(
        lambda i, out: ["infer", *options(checkpoint=i.checkpoint, manifest=i / "texts.jsonl", output=out / "a.jsonl")],
        slow=False,
        keeps=("a.jsonl", "a.jsonl.made_by.json"),
    ),
    "evaluate": WriteJob(
        lambda i, out: ["evaluate", *options(checkpoint=i.checkpoint, data=i / "store", output=out, resamples=20)],
        slow=False,
        keeps=("predictions.partial.jsonl",),
    ),
    "audit": WriteJob(
        lambda i, out: [
            "audit",
            str(i / "answers.jsonl"),
            *options(data=i / "store", task="emotion", output=out, resamples=20),
        ],
        slow=False,
    ),
    "calibrate": WriteJob(
        lambda i, out: ["calibrate", *options(checkpoint=out, data=i / "store")], copy_of_checkpoint, slow=False
    ),
    "card": WriteJob(lambda i, out: ["card", str(i.checkpoint), *options(output=out / "new" / "README.md")], slow=False),
    "info": WriteJob(
        lambda i, out: ["info", *options(path=out), "--write_checksums"], checkpoint_without_record, slow=False
    ),
    "merge": WriteJob(lambda i, out: ["merge", *options(checkpoint=i.checkpoint, output=out)], slow=False),
    "convert-llama2c": WriteJob(
        lambda i, out: [
            "convert-llama2c",
            *options(source=i / "llama2c.bin", tokenizer=i / "tokenizer.bin", target=out),
        ],
        slow=False,
    ),
    "report": WriteJob(lambda i, out: ["report", *options(evaluations=i / "evaluation", output=out / "report.html")]),
    "prompts compare": WriteJob(
        lambda i, out: [
            *("prompts", "compare", "--prompts", "short"),
            *options(checkpoint=i.checkpoint, data=i / "store", output=out, label_orders=1, resamples=20),
        ],
        keeps=("predictions.jsonl", "prompts.json", "prompts.md"),
    ),
    "extract": WriteJob(
        lambda i, out: ["extract", *options(manifest=i / "clips.jsonl", output=out, vision="none", workers=1)],
        keeps=("output.parts",),
    ),
    "train": WriteJob(lambda i, out: _train(i, out, resume_from_checkpoint="true"), keeps=("output",)),
    "train, overwriting": WriteJob(
        lambda i, out: _train(i, out, resume_from_checkpoint="true", overwrite_output_dir="true"),
        copy_of_checkpoint,
        keeps=(".output.overwriting",),
    ),
    "train with seeds": WriteJob(lambda i, out: _train(i, out, seed=None, seeds=[1, 2]), keeps=("output",)),
    "compare": WriteJob(lambda i, out: ["compare", *_compared(i, out), "--keep_models"], keeps=("output",)),
    "crosslingual": WriteJob(lambda i, out: ["crosslingual", *_compared(i, out)], keeps=("output",)),
    "reproduce": WriteJob(lambda i, out: ["reproduce", str(i.checkpoint), *options(output=out)], keeps=("output",)),
    "train-backbone": WriteJob(
        lambda i, out: [
            "train-backbone",
            *options(output=out, vocabulary=700, hidden_size=16, layers=1, heads=2, lines=400, steps=2, batch_size=2),
        ]
    ),
    "make-corpus": WriteJob(
        lambda i, out: ["make-corpus", *options(output=out, utterances_per_language=60)], keeps=("output",)
    ),
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused_in_one_line(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Call a command that has to be refused; the line that says why."""
    capfd.readouterr()
    assert main(words) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    said = [line for line in printed.splitlines() if line.startswith("llm-mer ")]
    assert len(said) == 1, printed
    assert printed.rstrip().endswith(said[0])
    return said[0]
