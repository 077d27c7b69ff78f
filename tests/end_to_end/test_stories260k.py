"""A really pretrained Llama: its weights load, it tells its story, and it takes LoRA and pseudo tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Shared, adapter_weights, make_utterances, training_options

SOURCE = Path(os.environ.get("LLM_MER_SHARED_DATA", ROOT.parent / "shared" / "data")) / "stories260k"
pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="shared/data/stories260k is not here")


@pytest.fixture(scope="module")
def stories(shared: Shared) -> Path:
    from llm_mer.backbones.convert.llama2c import convert_llama2c

    return shared.make("stories260k", lambda folder: convert_llama2c(next(SOURCE.glob("*.bin")), folder))


def test_the_published_weights_tell_a_story(stories: Path) -> None:
    from llm_mer.backbones.loading import load_backbone

    loaded = load_backbone(str(stories), dtype="float32")
    ids = loaded.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    text = loaded.tokenizer.decode(
        loaded.model.generate(ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True
    )
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")


def test_it_takes_lora_and_pseudo_tokens_and_learns_what_only_sound_and_picture_tell(stories: Path, tmp_path: Path) -> None:
    from llm_mer.cli.train import finetune
    from llm_mer.data.store import write_store
    from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate

    english = [
        u
        for split, n in (("train", 192), ("valid", 16), ("test", 96))
        for u in make_utterances(split, n)
        if u.language == "en"
    ]
    store = write_store(english, tmp_path / "store")
    options = training_options(
        store, stories, tmp_path / "run", auxiliary_head="true", num_train_epochs=12, learning_rate="1e-2"
    )
    run = finetune(options)
    lora = [value for name, value in adapter_weights(run).items() if "lora_B" in name]
    assert lora
    assert all(float(value.abs().max()) > 0 for value in lora)
    config = EvaluateConfig(checkpoint=str(run), data=[str(store)], conditions=["shuffle:audio,vision"], resamples=50)
    evaluation, _ = evaluate(config, progress=False)
    row, shuffled = evaluation.find(task="emotion"), evaluation.find("audio and vision shuffled", "emotion")
    assert row is not None
    assert shuffled is not None
    assert row.metrics["accuracy"] > max(row.baseline["accuracy"], shuffled.metrics["accuracy"]) + 0.3


def test_its_frozen_weights_are_untouched_in_the_checkpoints_copy(stories: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from llm_mer.cli.train import finetune
    from llm_mer.data.store import write_store

    english = [u for u in make_utterances("train", 32) if u.language == "en"]
    run = finetune(training_options(write_store(english, tmp_path / "store"), stories, tmp_path / "run"))
    for path in stories.glob("*.safetensors"):
        before, after = load_file(path), load_file(run / "backbone" / path.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
