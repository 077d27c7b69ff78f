"""Broken inputs that are right by themselves and wrong where they stand: options twice, files added, texts too long."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_inputs import Build, Fault, Ground, checkpoint, cli, edit
from conftest import make_utterances, training_options


def nowhere(ground: Ground) -> Path:
    return ground.folder / "output"


def train(*words: str, **changes: Any) -> Callable[[Path, Ground], Any]:
    """A training on the store with these options; ``data`` and ``backbone`` may be the input that was built."""

    def read(path: Path, ground: Ground) -> Any:
        from llm_mer.cli.train import finetune

        options = {name: path if value == "{}" else value for name, value in changes.items()}
        places = {"data": options.pop("data", ground.store), "backbone": options.pop("backbone", ground.backbone)}
        return finetune([*training_options(*places.values(), ground.folder / "run", **options), *words])

    return read


def evaluate(path: Path, ground: Ground) -> Any:
    from llm_mer.evaluation.evaluate import evaluate as run
    from llm_mer.evaluation.options import EvaluateConfig

    return run(EvaluateConfig(str(ground.checkpoint()), [str(path)], limit=4, resamples=5), progress=False)


def calibrate(path: Path, ground: Ground) -> Any:
    from llm_mer.evaluation.calibrate import calibrate as run
    from llm_mer.evaluation.options import CalibrateConfig

    return run(CalibrateConfig(str(ground.checkpoint()), str(path)))


def compare_prompts(path: Path, ground: Ground) -> Any:
    from llm_mer.experiments.options import PromptComparisonConfig
    from llm_mer.experiments.prompt_comparison import compare_prompts as run

    return run(PromptComparisonConfig(checkpoint=str(ground.checkpoint()), data=str(path), resamples=5), progress=False)


def with_model(ground: Ground) -> Path:
    """The training's output folder, with a model in it."""
    return ground.write("run/llm_mer.json", "{}").parent


def some_answers(ground: Ground) -> Path:
    """An evaluation's folder with answers in it."""
    return ground.write("evaluation/predictions.jsonl", '{"id": "a"}\n').parent


def pushed_config(ground: Ground) -> Path:
    """A configuration that pushes what it trains."""
    told = f"data: {ground.store}\nbackbone: none\npush_to_hub: true\nhub_model_id: a/b\n"
    return ground.write("pushed.yaml", told)


def with_long_text(split: str) -> Build:
    """A store with one transcript of 300 sentences."""

    def build(ground: Ground) -> Path:
        from llm_mer.data.store import write_store

        own = make_utterances(split, 4)
        own[2] = dataclasses.replace(own[2], text="we meet on monday " * 300)
        splits = {"train": make_utterances("train", 8), "valid": make_utterances("valid", 4), split: own}
        write_store([utterance for part in splits.values() for utterance in part], ground.folder / "long")
        return ground.folder / "long"

    return build


def with_positions(count: int) -> Build:
    """A backbone of so many positions."""

    def build(ground: Ground) -> Path:
        folder = Path(shutil.copytree(ground.backbone, ground.folder / "short"))
        edit(folder / "config.json", lambda entry: entry.update(max_position_embeddings=count))
        return folder

    return build


def added(name: str, content: str = "{}") -> Build:
    """A checkpoint with a file that was laid into it since."""
    return lambda ground: (ground.checkpoint(), ground.write(f"checkpoint/{name}", content))[1]


def edited(name: str) -> Build:
    return lambda ground: edit(ground.checkpoint() / name, lambda entry: entry.update(num_pseudo_tokens=9))


def record(change: Callable[[dict[str, Any]], Any]) -> Build:
    """A checkpoint whose checksums were changed."""
    return lambda ground: edit(ground.checkpoint() / "checksums.json", lambda entry: change(entry["files"]) and None)


def flat_pixels(ratio: Fraction) -> Build:
    def build(ground: Ground) -> Path:
        av = pytest.importorskip("av", reason="PyAV is not installed")
        from media_files import video_stream, write_pictures

        path, pixels = ground.folder / "flat.mp4", np.full((5, 32, 32, 3), 120, dtype=np.uint8)
        with av.open(str(path), "w") as container:
            stream = video_stream(container, pixels)
            stream.codec_context.sample_aspect_ratio = ratio
            write_pictures(container, stream, pixels, [i / 25 for i in range(5)])
        return path

    return build


def frames(path: Path, _: Ground) -> Any:
    from llm_mer.features.media import MediaError, read_frames

    try:
        read_frames(path, 25)
    except MediaError as error:
        from llm_mer.errors import UserError

        raise UserError(str(error)) from None


TWICE = "of which the last alone would count"
PUSH = {"push_to_hub": "true", "hub_model_id": "some/mer"}
ADDED = "was not written with the checkpoint, and would change what it computes; move it away"
SETUP_FAULTS: tuple[Fault, ...] = (
    Fault(
        "twice: a training's seed", nowhere, train("--seed", "8"), f"--seed: given 2 times, 7 and 8, {TWICE}; name one", ""
    ),
    Fault("twice: a training's list", nowhere, train("--tasks", "sentiment"), "name all of them behind one --tasks", ""),
    Fault("twice: with hyphens", nowhere, train("--lora-r=8"), "--lora_r: given 2 times, 4 and 8", ""),
    Fault(
        "twice: an evaluation's limit",
        nowhere,
        cli("evaluate", "--checkpoint", "x", "--data", "y", "--limit", "3", "--limit=4"),
        f"--limit: given 2 times, 3 and 4, {TWICE}",
        "",
    ),
    Fault(
        "twice: an evaluation's data",
        nowhere,
        cli("evaluate", "--checkpoint", "x", "--data", "y", "--data", "z"),
        "--data: given 2 times, y and z, .*name all of them behind one --data",
        "",
    ),
    Fault(
        "twice: a text to answer",
        nowhere,
        cli("infer", "--checkpoint", "x", "--text", "so happy", "--text", "so sad"),
        "--text: given 2 times, so happy and so sad",
        "",
    ),
    Fault(
        "twice: an engine's option",
        nowhere,
        cli("infer", "--checkpoint", "x", "--text", "a", "--engine_options", "seed=1", "seed=2"),
        "--engine_options: seed is given twice; name it once",
        "",
    ),
    Fault(
        "twice: by place and by name",
        nowhere,
        cli("push", "runs/mine", "some/mer", "--folder", "runs/other"),
        "--folder: runs/other and, without the option's name, runs/mine; name one",
        "",
    ),
    Fault(
        "twice: a switch",
        nowhere,
        cli("evaluate", "--checkpoint", "x", "--data", "y", "--generate", "--generate", "false"),
        "--generate: given 2 times, true and false",
        "",
    ),
    Fault(
        "optimiser: unknown",
        nowhere,
        train(optim="adam"),
        "optim: 'adam' is no optimiser of transformers; adamw_torch, ",
        "",
    ),
    Fault(
        "optimiser: its package is missing",
        nowhere,
        train(optim="grokadamw"),
        "optim: grokadamw needs the package grokadamw, which is not installed: pip install grokadamw",
        "",
    ),
    Fault(
        "optimiser: its arguments",
        nowhere,
        train(optim="sgd", optim_args="momentum=much"),
        "optim: sgd, optim_args: momentum=much: could not convert string to float",
        "",
    ),
    Fault("push: no repository", nowhere, train(push_to_hub="true"), "no repository is named; say hub_model_id", ""),
    Fault("push: no name", nowhere, train(push_to_hub="true", hub_model_id="a/b/c"), "'a/b/c' is not a repository name", ""),
    Fault("push: many seeds", nowhere, train(**PUSH, seeds=["1", "2"]), "push one of them with `llm-mer push`", ""),
    Fault("push: no backbone", nowhere, train(**PUSH, save_backbone="never"), "could then be loaded nowhere else", ""),
    Fault("push: each checkpoint", nowhere, train(**PUSH, hub_strategy="checkpoint"), "is pushed, once; leave it out", ""),
    Fault("checkpoint: config.json edited", edited("config.json"), checkpoint, "damaged or edited: it has"),
    Fault("checkpoint: a chat template added", added("chat_template.json"), checkpoint, ADDED),
    Fault("checkpoint: tokens added", added("added_tokens.json", json.dumps({"<x>": 3})), checkpoint, ADDED),
    Fault("checkpoint: a vocabulary added", added("vocab.json"), checkpoint, ADDED),
    Fault("checkpoint: settings of generation added", added("generation_config.json"), checkpoint, ADDED),
    Fault(
        "checkpoint: a file out of the record",
        record(lambda files: files.pop("tokenizer.json")),
        checkpoint,
        f"tokenizer.json: it {ADDED}",
        "tokenizer.json",
    ),
    Fault(
        "length: of a training's prompt",
        with_long_text("train"),
        train(data="{}"),
        r"split 'train': utterance 'train-002': the prompt of task 'emotion' has \d+ tokens, and max_prompt_tokens is 1024",
    ),
    Fault(
        "length: of an evaluation split's prompt",
        with_long_text("valid"),
        train(data="{}", eval_strategy="epoch"),
        r"split 'valid': utterance 'valid-002': .*shorten or split the transcript, or leave the utterance out",
    ),
    Fault(
        "length: of an evaluation's prompt", with_long_text("test"), evaluate, r"utterance 'test-002': the prompt of task"
    ),
    Fault(
        "length: beyond the backbone's positions",
        with_positions(24),
        train(backbone="{}"),
        r"has \d+ tokens, and the backbone has positions for 24, \d+ of them for the answer",
        "",
    ),
    Fault(
        "length: earlier turns beyond the backbone's positions",
        with_positions(24),
        train(backbone="{}", prompts=["context"]),
        r"max_prompt_tokens: 1024, but the backbone has positions for 24 tokens",
        "",
    ),
    Fault("media: pixels without sense", flat_pixels(Fraction(9)), frames, "pixels 9 times as wide as high; at most 8"),
    Fault(
        "media: pixels on edge", flat_pixels(Fraction(1, 12)), frames, "pixels 0.0833333 times as wide as high; at most 8"
    ),
    Fault(
        "options: a schedule that lacks an argument",
        nowhere,
        train(lr_scheduler_type="cosine_with_min_lr"),
        r"lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: none: .*min_lr",
        "",
    ),
    Fault(
        "options: a schedule that lacks its decay",
        nowhere,
        train(lr_scheduler_type="warmup_stable_decay"),
        r"lr_scheduler_type: warmup_stable_decay, .*num_decay_steps",
        "",
    ),
    Fault(
        "options: an argument that no schedule knows",
        nowhere,
        train(lr_scheduler_type="polynomial", lr_scheduler_kwargs='{"foo": 1}'),
        r"lr_scheduler_type: polynomial, lr_scheduler_kwargs: .*foo",
        "",
    ),
    Fault("options: a beta above one", nowhere, train(adam_beta1=1.5), r"adam_beta1: 1.5; it must lie in \[0, 1\)", ""),
    Fault("options: a negative epsilon", nowhere, train(adam_epsilon=-1), r"adam_epsilon: -1.0; it must be at least 0", ""),
    Fault(
        "options: less than no worker",
        nowhere,
        train(dataloader_num_workers=-1),
        r"dataloader_num_workers: -1; it must be at least 0",
        "",
    ),
    Fault(
        "options: an accelerator's option that is none",
        nowhere,
        train(accelerator_config='{"foo": true}'),
        r"options of the trainer: .*'foo'",
        "",
    ),
    Fault(
        "options: a checkpointing option that is none",
        nowhere,
        train(gradient_checkpointing_kwargs='{"foo": 1}'),
        r"gradient_checkpointing_kwargs: 'foo' is no option of it; choose from use_reentrant",
        "",
    ),
    Fault(
        "options: an optimiser's argument without effect",
        nowhere,
        train(optim_args="foo=1"),
        r"optim_args: 'foo=1' changes nothing of optim adamw",
        "",
    ),
    Fault(
        "options: target modules of an optimiser without them",
        nowhere,
        train(optim="sgd", optim_target_modules="all-linear"),
        r"optim_target_modules: .* would have no effect",
        "",
    ),
    Fault(
        "options: inputs for metrics",
        nowhere,
        train(include_for_metrics=["inputs"]),
        r"include_for_metrics: .* would have no effect here",
        "",
    ),
    Fault(
        "options: evaluation batches apart",
        nowhere,
        train(eval_do_concat_batches="false"),
        r"eval_do_concat_batches: False would have no effect here",
        "",
    ),
    Fault(
        "options: seeds beside a model",
        with_model,
        train(seeds=["1", "2"]),
        r"output_dir: .*run holds a model, and seeds beside it",
        "run",
    ),
    Fault(
        "options: a push that a comparison would not make",
        pushed_config,
        cli("compare", "--config", "{}", "--adapters", "gated_projector", "--seeds", "1"),
        r"push_to_hub: true, but a comparison pushes nothing",
        "",
    ),
    Fault(
        "options: a report in the place of answers",
        some_answers,
        cli("report", "--evaluations", "{}", "--output", "{}/predictions.jsonl"),
        r"--output .*predictions.jsonl: holds something else than a page",
        "predictions.jsonl",
    ),
    Fault(
        "length: of a prompt of a calibration",
        with_long_text("valid"),
        calibrate,
        r"split 'valid': utterance 'valid-002': the prompt of task",
        "",
    ),
    Fault(
        "length: of a prompt of a comparison of prompts",
        with_long_text("test"),
        compare_prompts,
        r"split 'test', prompt '.*': utterance 'test-002': the prompt of task",
        "",
    ),
)
