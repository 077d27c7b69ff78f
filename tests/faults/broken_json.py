"""JSON that is not as it was written, wherever it is read: a key twice, NaN, nesting without end, another content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from broken_inputs import Build, Fault, Ground, backbone_alone, checkpoint, cut, file


def merge_answers(path: Path, ground: Ground) -> None:
    from llm_mer.inference.output_file import PartFiles

    PartFiles(path.with_name("answers.jsonl")).answered(1)


def continue_evaluation(path: Path, ground: Ground) -> None:
    from llm_mer.evaluation.journal import Journal

    Journal.open(path, {"split": "test"})


def go_on_after(path: Path, ground: Ground) -> None:
    """What a resumed training makes of its trajectories."""
    from llm_mer.training.epoch_end import truncate_trajectories

    truncate_trajectories(path, 1.0)


def read_log(path: Path, ground: Ground) -> None:
    from llm_mer.evaluation.rows import Evaluation
    from llm_mer.reporting.facts import LoadedEvaluation

    LoadedEvaluation(Evaluation("x", {}, "data", "test", 0, 10), {}, path.parent, path.parent).read_log()


def load_part(path: Path, ground: Ground) -> None:
    from llm_mer.features.extract import load_part

    load_part(path)


def chatglm3(path: Path, ground: Ground) -> None:
    from llm_mer.backbones.convert.chatglm3 import read_config

    read_config(path)


def weights_of_chatglm3(path: Path, ground: Ground) -> None:
    from llm_mer.backbones.convert.chatglm3 import weight_files

    weight_files(path.parent)


def backbone_file(name: str, content: str) -> Build:
    """A backbone with another content of one file; returns that file."""

    def build(ground: Ground) -> Path:
        folder = Path(shutil.copytree(ground.backbone, ground.folder / "backbone"))
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return build


def lora_settings(change: Callable[[str], str]) -> Build:
    def build(ground: Ground) -> Path:
        path = ground.checkpoint() / "adapter_config.json"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        return path

    return build


def part_of_extraction(rejected: str) -> Build:
    def build(ground: Ground) -> Path:
        path = ground.folder / "part.npz"
        np.savez(path, rejected=np.array(rejected), audio=np.ones((2, 3), np.float32))
        return path

    return build


def arguments_of(ground: Ground, given: str) -> None:
    from llm_mer.training.arguments import MerTrainingArguments

    MerTrainingArguments(output_dir=str(ground.folder / "run"), dataset_kwargs=given)  # type: ignore[arg-type]


NESTED = "[" * 100_000
TWO_TYPES = '{"model_type": "a", "model_type": "chatglm"}'
JOURNAL_HEAD = '{"settings": {"split": "test"}}\n'
JSON_FAULTS = (
    Fault(
        "backbone: a size given twice",
        backbone_file("config.json", '{"a": 1, "a": 2}'),
        lambda p, g: backbone_alone(p.parent, g),
        "config.json: .*key 'a' occurs twice",
    ),
    Fault(
        "backbone: a configuration nested without end",
        backbone_file("config.json", NESTED),
        lambda p, g: backbone_alone(p.parent, g),
        "config.json: .*nested too deeply",
    ),
    Fault(
        "backbone: settings of its tokenizer nested without end",
        backbone_file("tokenizer_config.json", NESTED),
        lambda p, g: backbone_alone(p.parent, g),
        "tokenizer_config.json: .*nested too deeply",
    ),
    Fault(
        "backbone: an end of generation given twice",
        backbone_file("generation_config.json", '{"eos_token_id": 1, "eos_token_id": 2}'),
        lambda p, g: backbone_alone(p.parent, g),
        "'eos_token_id' occurs twice",
    ),
    Fault(
        "backbone: a tokenizer cut off",
        backbone_file("tokenizer.json", '{"version": "1.0", "mod'),
        lambda p, g: backbone_alone(p.parent, g),
        "tokenizer's files are missing or damaged",
        "backbone",
    ),
    Fault(
        "backbone: ChatGLM3's configuration given twice",
        file("config.json", TWO_TYPES),
        chatglm3,
        "'model_type' occurs twice",
    ),
    Fault(
        "backbone: ChatGLM3's configuration nested without end",
        file("config.json", '{"model_type": ' + NESTED),
        chatglm3,
        "nested too deeply",
    ),
    Fault(
        "backbone: ChatGLM3's weights in two places",
        file("pytorch_model.bin.index.json", '{"weight_map": {"a": "x", "a": "y"}}'),
        weights_of_chatglm3,
        "key 'a' occurs twice",
    ),
    Fault(
        "backbone: ChatGLM3's list of weights nested without end",
        file("pytorch_model.bin.index.json", NESTED),
        weights_of_chatglm3,
        "nested too deeply",
    ),
    Fault(
        "checkpoint: a LoRA setting given twice",
        lora_settings(lambda text: text.replace("{", '{"r": 64,', 1)),
        checkpoint,
        "'r' occurs twice",
    ),
    Fault(
        "checkpoint: LoRA settings nested without end",
        lora_settings(lambda text: '{"r": ' + NESTED),
        checkpoint,
        "nested too deeply",
    ),
    Fault(
        "evaluate: an unfinished evaluation with a value given twice",
        file(
            "predictions.partial.jsonl",
            JOURNAL_HEAD + '{"condition": "as is", "condition": "x", "questions": [], "predictions": []}\n',
        ),
        continue_evaluation,
        "jsonl:2: damaged .key 'condition' occurs twice.*; delete the file",
    ),
    Fault(
        "evaluate: an unfinished evaluation with NaN",
        file("predictions.partial.jsonl", JOURNAL_HEAD + '{"condition": "as is", "questions": [NaN], "predictions": []}\n'),
        continue_evaluation,
        "jsonl:2: damaged .NaN is not JSON",
    ),
    Fault(
        "evaluate: an unfinished evaluation nested without end",
        file("predictions.partial.jsonl", JOURNAL_HEAD + NESTED + "\n"),
        continue_evaluation,
        "jsonl:2: .*nested too deeply",
    ),
    Fault(
        "evaluate: an unfinished evaluation that is not UTF-8",
        file("predictions.partial.jsonl", JOURNAL_HEAD.encode() + b'{"condition": "\xff"}\n'),
        continue_evaluation,
        "jsonl:2: damaged .not UTF-8",
    ),
    Fault(
        "evaluate: an unfinished evaluation of other content",
        file("predictions.partial.jsonl", JOURNAL_HEAD + '{"a": 1}\n'),
        continue_evaluation,
        "jsonl:2: damaged .*predictions",
    ),
    Fault(
        "infer: answers of a process nested without end",
        file("answers.jsonl.part-0", "0\t" + NESTED + "\n"),
        merge_answers,
        "part-0:1: not a line of infer.py .*nested too deeply",
    ),
    Fault(
        "infer: answers of a process without their place",
        file("answers.jsonl.part-0", 'x\t{"id": "a", "value": 1}\n'),
        merge_answers,
        "part-0:1: not a line of infer.py .it does not begin with its place",
    ),
    Fault(
        "train: trajectories with an epoch given twice",
        file("trajectories.jsonl", '{"epoch": 0}\n{"epoch": 0, "epoch": 1}\n'),
        go_on_after,
        "jsonl:2: key 'epoch' occurs twice",
    ),
    Fault(
        "train: trajectories without an epoch",
        file("trajectories.jsonl", '{"epoch": 0}\n{"name": "x"}\n'),
        go_on_after,
        "jsonl:2: field 'epoch' is None; a training writes a number",
    ),
    Fault(
        "train: trajectories nested without end",
        file("trajectories.jsonl", '{"epoch": ' + NESTED + "\n"),
        go_on_after,
        "jsonl:1: .*nested too deeply",
    ),
    Fault(
        "report: a log of a training cut off",
        file("log_history.json", '[{"loss": 1'),
        read_log,
        "damaged or cut off, not JSON",
    ),
    Fault(
        "report: a log of a training that is no list",
        file("log_history.json", '{"loss": 1}'),
        read_log,
        "damaged, holds dict in place of a list",
    ),
    Fault(
        "extract: a waiting result with a reason given twice",
        part_of_extraction('[{"id": "a", "id": "b"}]'),
        load_part,
        "damaged .*'id' occurs twice.*; delete it",
    ),
    Fault(
        "extract: a waiting result nested without end", part_of_extraction(NESTED), load_part, "damaged .*nested too deeply"
    ),
    Fault(
        "extract: a waiting result cut off", lambda g: cut(part_of_extraction("[]")(g)), load_part, "damaged .*; delete it"
    ),
    Fault(
        "options: dataset_kwargs given twice",
        lambda g: g.folder,
        lambda p, g: arguments_of(g, '{"a": 1, "a": 2}'),
        "dataset_kwargs: key 'a' occurs twice",
        "",
    ),
    Fault(
        "options: dataset_kwargs that are no object",
        lambda g: g.folder,
        lambda p, g: arguments_of(g, "[1]"),
        "dataset_kwargs: .* it must be an object",
        "",
    ),
)
