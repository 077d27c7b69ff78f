"""The language of an utterance is told by one rule wherever it enters, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig, single_utterance
from llm_mer.inference.pipeline import MerPipeline

SOUND = np.ones((5, 6), np.float32)


def test_the_transcript_tells_the_language_of_an_utterance_in_python() -> None:
    assert Utterance("a", text="我今天真的太高兴了").language == "zh"
    assert Utterance("a", text="I am so happy").language == "en"
    assert Utterance("a", language=None, text="我很高兴").language == "zh"  # type: ignore[arg-type]
    assert Utterance("a", language="en", text="我很高兴").language == "en"


@pytest.mark.parametrize("text", ["정말 행복해요", "Ich bin sehr froh", "うれしい"])
def test_a_transcript_in_another_language_is_refused_in_python_and_on_the_command_line(text: str) -> None:
    with pytest.raises(UserError, match="utterance 'a': language cannot be told"):
        Utterance("a", text=text)
    with pytest.raises(UserError, match="language cannot be told"):
        single_utterance(InferConfig(text=text))
    assert single_utterance(InferConfig(text=text, language="en")).language == "en"


def test_without_a_transcript_a_checkpoint_of_several_languages_wants_the_language(trained: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    with pytest.raises(UserError, match=r"utterance 'clip': language is not given.*one of en, zh"):
        pipeline([Utterance("clip", audio_features=SOUND)])
    assert pipeline([Utterance("clip", language="zh", audio_features=SOUND)])[0].language == "zh"


def test_without_a_transcript_a_checkpoint_of_one_language_answers_in_it(trained: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    processor = pipeline.predictor.processor
    processor.prompts = [prompt for prompt in processor.prompts if prompt.language == "zh"]
    assert pipeline([Utterance("clip", audio_features=SOUND)])[0].language == "zh"
