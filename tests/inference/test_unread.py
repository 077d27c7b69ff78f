"""What is given and no part of a checkpoint reads is said: in each answer, once in the log, and in an evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.evaluate import evaluate_checkpoint
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.unread import describe_unread


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory, store: Path, backbones: dict[str, Path]) -> Path:
    """A checkpoint that reads audio alone: no vision, and no transcript in adapter or prompt."""
    from conftest import training_options

    folder = tmp_path_factory.mktemp("deaf") / "run"
    changes = {"use_vision": "false", "use_text": "false", "prompts": ["notext"], "max_steps": 1}
    return finetune(training_options(store, backbones["llama"], folder, **changes))


def test_features_and_words_that_nothing_reads_are_said(
    deaf: Path, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = "the transcript and vision features of 4 of 4 utterances are given, and this checkpoint reads none of it"
    with caplog.at_level(logging.WARNING, "llm_mer"):
        evaluate_checkpoint(
            EvaluateConfig(str(deaf), [str(store)], str(tmp_path / "out"), limit=4, resamples=10, batch_size=2)
        )
    assert told in json.loads((tmp_path / "out" / "evaluation.json").read_text())["warnings"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {tuple(line["unread"]) for line in lines} == {("vision", "transcript")}
    said = [r.getMessage() for r in caplog.records if "reads none of it" in r.getMessage()]
    assert said == ["the transcript and vision features are given, and this checkpoint reads none of it"]


def test_what_is_read_is_not_said(trained: Path, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    utterances = list(UtteranceStore.open(store).split("test"))[:2]
    with caplog.at_level(logging.WARNING, "llm_mer"):
        found = MerPipeline.from_pretrained(trained)(utterances)
    assert [p.unread for p in found] == [[]] * len(found)
    assert "unread" not in found[0].to_dict()
    assert "reads none" not in caplog.text


def test_a_transcript_that_the_prompt_alone_shows_is_read(arguments: Callable[..., list[str]], store: Path) -> None:
    folder = finetune(arguments(use_text="false", max_steps=1))
    (found,) = MerPipeline.from_pretrained(folder)(list(UtteranceStore.open(store).split("test"))[:1])
    assert found.unread == []


def test_an_adapter_alone_reads_no_words(arguments: Callable[..., list[str]], store: Path) -> None:
    folder = finetune(arguments(backbone="none", adapter="gia_mic", max_steps=1))
    (found, *_) = MerPipeline.from_pretrained(folder)(list(UtteranceStore.open(store).split("test"))[:1])
    assert found.unread == ["transcript"]


def test_parts_are_named_in_words() -> None:
    assert describe_unread(["audio", "transcript"]) == "audio features and the transcript"
