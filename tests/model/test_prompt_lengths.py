"""A prompt that is too long is told before the first step of a training or evaluation, with its id, tokens and remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_utterances
from transformers import AutoTokenizer

from llm_mer.cli.train import finetune
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation import evaluate as evaluation
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.training import run as training_run


@pytest.fixture
def long_store(tmp_path: Path) -> Path:
    """The last of each split's utterances has a transcript of many words."""
    found = []
    for split, count in (("train", 12), ("valid", 4), ("test", 4)):
        utterances = make_utterances(split, count)
        utterances[-2] = dataclasses.replace(utterances[-2], text="we meet on monday " * 300)  # English
        found += utterances
    write_store(found, tmp_path / "long")
    return tmp_path / "long"


def test_a_training_is_refused_before_its_first_step(
    long_store: Path, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "train_run", lambda *_: pytest.fail("the training began"))
    with pytest.raises(
        UserError,
        match=r"long, split 'train': utterance 'train-010': the prompt of task 'emotion' has \d+ tokens, and "
        r"max_prompt_tokens is 1024; shorten or split the transcript, or leave the utterance out",
    ):
        finetune(arguments(data=long_store))


def test_the_evaluation_split_of_a_training_is_looked_at_too(tmp_path: Path, arguments: Callable[..., list[str]]) -> None:
    valid = make_utterances("valid", 4)
    valid[2] = dataclasses.replace(valid[2], text="we meet on monday " * 300)
    write_store([*make_utterances("train", 12), *valid], tmp_path / "data")
    with pytest.raises(UserError, match="split 'valid': utterance 'valid-002': the prompt of task 'emotion' has"):
        finetune(arguments(data=tmp_path / "data", eval_strategy="epoch"))
    finetune(arguments(data=tmp_path / "data", max_steps=1))


def test_an_evaluation_is_refused_before_its_first_answer(
    long_store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "predict_conditions", lambda *_: pytest.fail("the evaluation began"))
    with pytest.raises(UserError, match=r"split 'test': utterance 'test-002': .* has \d+ tokens.*\(and 1 more prompts\)"):
        evaluate(EvaluateConfig(str(trained), [str(long_store)], resamples=10), progress=False)


def test_a_prompt_beyond_the_backbones_positions_is_refused_whatever_max_prompt_tokens_says(
    store: Path, backbones: dict[str, Path], arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(backbones["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 24}))
    with pytest.raises(
        UserError, match=r"has \d+ tokens, and the backbone has positions for 24, \d+ of them for the answer"
    ):
        finetune(arguments(backbone=folder))
    with pytest.raises(
        UserError, match=r"max_prompt_tokens: 1024, but the backbone has positions for 24 tokens, \d+ of them"
    ):
        finetune(arguments(backbone=folder, prompts=["context"]))


def test_text_of_many_bytes_and_few_tokens_is_counted_by_its_tokens(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bounds a prompt are bytes; only its tokens refuse it."""
    tokenizer = AutoTokenizer.from_pretrained(trained, local_files_only=True)
    text = "monday " * 150
    assert len(text.encode()) > 1024 > len(tokenizer(text)["input_ids"]) + 200
    utterances = make_utterances("test", 4)
    utterances[2] = dataclasses.replace(utterances[2], text=text)
    write_store(utterances, tmp_path / "data")
    evaluate(EvaluateConfig(str(trained), [str(tmp_path / "data")], resamples=10), progress=False)
