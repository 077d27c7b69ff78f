"""Building the model of a run: what a backbone may be called, sizes and label vectors, starting from weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import AUDIO_SIZE, VISION_SIZE, adapter_weights

from llm_mer.checkpoints.backbone_reference import folder_fingerprint
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.context_vectors import mean_token_embeddings
from llm_mer.training.model_builder import label_vectors, model_feature_sizes, resolve_backbone
from llm_mer.training.options import DataArguments, ModelArguments
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run_data import prepare_data
from llm_mer.training.setup import build_trainer


def test_a_backbone_is_a_name_and_never_none_at_all(tmp_path: Path) -> None:
    assert resolve_backbone(str(tmp_path)) == str(tmp_path)
    with pytest.raises(UserError, match="backbone: name a folder"):
        resolve_backbone("")


def test_the_adapter_reads_text_where_its_source_has_it(store: Path) -> None:
    run = prepare_data(DataArguments(data=str(store)))
    measured = {"audio": AUDIO_SIZE, "vision": VISION_SIZE}
    assert model_feature_sizes(run, ModelArguments(), 48) == {"text": 48, **measured}
    assert model_feature_sizes(run, ModelArguments(text_source="features"), 48) == measured
    assert model_feature_sizes(run, ModelArguments(), 0) == measured


def test_a_label_vector_is_the_mean_over_the_languages_words(trained: Path) -> None:
    loaded = load_checkpoint(trained)
    task = loaded.processor.tasks[0]
    vectors = label_vectors(loaded.model, loaded.processor, task)
    assert vectors.shape == (task.num_classes, 48)
    words = list(task.labels[1].words.values())
    assert len(words) == 2
    embedded = mean_token_embeddings(loaded.model, loaded.processor, words)
    assert np.allclose(vectors[1].numpy(), (embedded[0] + embedded[1]) / 2)


def test_a_hidden_size_that_does_not_fit_the_heads_is_one_clear_error(arguments: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="hidden_size 16 is not a multiple of num_heads 3"):
        finetune(arguments(num_heads=3))


def test_what_the_adapter_is_told_not_to_read_is_not_asked_for_later(
    arguments: Callable[..., list[str]], store: Path, tmp_path: Path
) -> None:
    output = finetune(arguments(use_vision="false", max_steps=1))
    pipeline = MerPipeline.from_pretrained(output)
    assert set(pipeline.predictor.processor.feature_sizes) == {"text", "audio"}
    utterance = UtteranceStore.open(store).split("test")[0]
    # A clip whose pictures are not looked at, so that it does not matter that there are none.
    utterance.vision_features, utterance.vision = None, str(tmp_path / "no.mp4")
    assert pipeline([pipeline.with_features(utterance)])[0].value in pipeline.tasks[0].label_names
    utterance.text = utterance.audio_features = None
    with pytest.raises(UserError, match=r"none of the modalities the checkpoint reads \(text, audio\)"):
        pipeline.with_features(utterance)


def test_an_adapter_told_to_read_nothing_is_one_clear_error(arguments: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="use_text=False, use_audio=False, use_vision=False"):
        finetune(arguments(use_text="false", use_audio="false", use_vision="false"))


def test_training_can_start_from_the_weights_of_a_checkpoint(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    first = finetune(arguments(output=tmp_path / "first", max_steps=2))
    trainer = build_trainer(parse_arguments(arguments(output=tmp_path / "second", init_checkpoint=first)))
    state, saved = trainer.model.state_dict(), adapter_weights(first)
    for name, value in saved.items():
        inner = name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default")
        inner = inner.replace("fusion_adapter", "fusion_adapter.modules_to_save.default")
        assert torch.equal(state[inner], value), name
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "modules_to_save" in n for n in trainable)
    assert any("lora_" in n for n in trainable)
    assert any("modules_to_save" in n for n in trainable)


def test_an_adapter_alone_starts_from_the_weights_of_a_checkpoint_too(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    first = finetune(arguments(output=tmp_path / "first", backbone="none", max_steps=2))
    trainer = build_trainer(
        parse_arguments(arguments(output=tmp_path / "second", backbone="none", init_checkpoint=first, seed=8))
    )
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in adapter_weights(first).items())


def test_starting_from_a_checkpoint_of_another_backbone_is_refused_with_both_fingerprints(
    arguments: Callable[..., list[str]], trained: Path, other_backbone: Path
) -> None:
    reference = CheckpointDescription.load(trained).backbone
    assert reference is not None
    both = (folder_fingerprint(other_backbone)[:12], str(reference.fingerprint)[:12])
    with pytest.raises(UserError) as caught:
        finetune(
            arguments(
                backbone=other_backbone, init_checkpoint=trained, auxiliary_head="true", tasks=["emotion", "sentiment"]
            )
        )
    assert all(fingerprint in str(caught.value) for fingerprint in both)


@pytest.mark.parametrize(("names", "message"), [(["q_proj", "qkv"], "'qkv'"), (["q.*"], r"'q\.\*'"), (["mlp"], "'mlp'")])
def test_lora_targets_are_names_of_linear_layers_each_of_which_is_there(
    names: list[str], message: str, arguments: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=f"lora_targets: the backbone has no linear layer {message}; its blocks have "):
        build_trainer(parse_arguments(arguments(lora_targets=names)))


def test_a_layer_may_be_named_with_what_it_lies_in(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(lora_targets=["self_attn.q_proj", "v_proj"])))
    named = [name.partition(".lora_") for name, _ in trainer.model.named_parameters()]
    adapted = {layer.rsplit(".", 1)[-1] for layer, mark, _ in named if mark}
    assert adapted == {"q_proj", "v_proj"}
