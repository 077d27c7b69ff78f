"""A trained model on data of which only the words, only the sound or only the face tell: the sentence is true."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import make_utterances, training_options

from llm_mer.cli.train import finetune
from llm_mer.data.schema import Utterance
from llm_mer.data.store import write_store
from llm_mer.evaluation.evaluate import EvaluateConfig
from llm_mer.evaluation.over_seeds import run
from llm_mer.evaluation.rows import Evaluation

WORDS = {"neutral": "table", "joy": "sun", "sadness": "rain", "anger": "fire", "surprise": "bell", "fear": "night"}


def telling(part: str, split: str, count: int) -> list[Utterance]:
    """Utterances in which one part holds the label, an offset of its mean or a word, and the others are random."""
    random = np.random.default_rng(len(split) + count)
    made = []
    for utterance in make_utterances(split, count):
        label = str(utterance.labels["emotion"])
        words = list(WORDS.values())
        place = list(WORDS).index(label) if label in WORDS else len(words) - 1
        features = {}
        for name in ("audio", "vision"):
            values = getattr(utterance, f"{name}_features")
            noise = random.normal(0, 0.3, values.shape).astype(np.float32)
            if name == part:
                noise[:, place % values.shape[1]] += 3.0
            features[f"{name}_features"] = noise
        said = words[place] if part == "text" else words[random.integers(len(words))]
        made.append(dataclasses.replace(utterance, text=f"the {said}", language="en", **features))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("part", "words"), [("text", "the words"), ("audio", "the sound"), ("vision", "the face")])
def test_a_trained_model_is_said_to_read_the_only_part_that_tells(
    part: str, words: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    write_store([*telling(part, "train", 192), *telling(part, "valid", 32), *telling(part, "test", 96)], tmp_path / "store")
    finetune(
        training_options(
            tmp_path / "store",
            backbones["llama"],
            tmp_path / "run",
            num_train_epochs=15,
            per_device_train_batch_size=16,
            learning_rate="1e-2",
        )
    )
    run(
        EvaluateConfig(
            checkpoint=str(tmp_path / "run"),
            data=[str(tmp_path / "store")],
            conditions=["shuffle:transcript", "shuffle:audio", "shuffle:vision"],
            resamples=200,
        )
    )
    (found,) = Evaluation.load(tmp_path / "run" / "evaluation").dependence
    read = [swap.source for swap in found.swaps if swap.verdict == "read"]
    assert read == [words], found.sentence
    assert f"The language model reads {words}" in found.sentence
