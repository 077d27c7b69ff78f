"""A checkpoint describes itself, loads elsewhere, and refuses what does not belong to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights, make_utterances, training_options

from llm_mer.checkpoints.backbone_reference import find_backbone, folder_fingerprint, save_backbone_reference
from llm_mer.checkpoints.description import BackboneReference, CheckpointDescription, stack_versions
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.weights import drop_training_only_parameters
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import fusion_adapter_of


def answers(folder: Path, store: Path, backbone: Path | None = None) -> list[list[float]]:
    pipeline = MerPipeline.from_pretrained(folder, backbone=None if backbone is None else str(backbone))
    return [p.log_probabilities for p in pipeline(list(UtteranceStore.open(store).split("test"))[:6])]


def test_the_description_says_everything_needed_and_reads_back(trained: Path, store: Path, tmp_path: Path) -> None:
    description = CheckpointDescription.load(trained)
    assert description.model["adapter"] == "egmf"
    assert description.model["adapter_config"]["feature_sizes"] == {"text": 48, "audio": 6, "vision": 5}
    assert set(description.processor["tasks"]) == {"emotion", "sentiment"}
    assert {p["language"] for p in description.processor["prompts"]} == {"en", "zh"}
    assert description.data["fingerprint"] == UtteranceStore.open(store).info.fingerprint
    assert description.baselines["emotion"]["counts"]["joy"] > 0
    assert sum(description.baselines["emotion"]["counts"].values()) == 96
    assert 0 < description.shift_probability["emotion"] < 1
    assert description.training["seed"] == 7
    assert description.training["loss_weights"] == {"lm": 1.0, "ce": 1.0, "l1": 1.0}
    assert description.versions == stack_versions()
    description.save(tmp_path)
    assert CheckpointDescription.load(tmp_path) == description


@pytest.mark.parametrize("speakers", [True, False])
def test_the_shift_probability_counts_labels_that_are_not_asked_about_and_speakers_that_are_known(
    speakers: bool, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    utterances = make_utterances("train", 12)  # one dialogue of A B A B A B in each language
    said = ["angry", "sad", "frustrated", "sad", "frustrated", "xxx"]
    for utterance in utterances:
        utterance.labels["emotion"] = said[utterance.turn]
        if not speakers or utterance.turn < 2:
            utterance.speaker = None
    store = write_store(utterances, tmp_path / "store")
    description = CheckpointDescription.load(finetune(arguments(data=store, tasks=["iemocap4"], max_steps=1)))
    assert sum(description.baselines["iemocap4"]["counts"].values()) == 6
    # In each language A stays frustrated and B shifts from sad to xxx; who spoke first is not known to be one person.
    expected = {"iemocap4": (2 + 1) / 4} if speakers else {}
    assert description.shift_probability == pytest.approx(expected)


def test_a_loaded_checkpoint_holds_the_saved_weights(trained: Path) -> None:
    loaded = load_checkpoint(trained)
    assert not loaded.model.training
    saved = adapter_weights(trained)
    adapter = fusion_adapter_of(loaded.model).state_dict()
    for name, value in adapter.items():
        (key,) = [k for k in saved if k.endswith(f"fusion_adapter.{name}")]
        assert torch.equal(value, saved[key]), name
    state = loaded.model.state_dict()
    lora = [k for k in saved if "lora_" in k]
    assert lora
    assert all(torch.equal(state[k.replace(".weight", ".default.weight")], saved[k]) for k in lora)


def test_a_checkpoint_moved_elsewhere_answers_identically_though_its_backbone_folder_is_gone(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    backbone = Path(shutil.copytree(backbones["llama"], tmp_path / "somewhere" / "backbone-of-mine"))
    output = finetune(training_options(store, backbone, tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1))
    before, inner = answers(output, store), answers(output / "checkpoint-1", store)
    shutil.rmtree(backbone)
    moved = Path(shutil.move(output, tmp_path / "moved"))
    assert answers(moved, store) == before
    assert answers(moved / "checkpoint-1", store) == inner
    description = (moved / "llm_mer.json").read_text()
    assert str(tmp_path) not in description
    assert "backbone-of-mine" in description


def test_a_backbone_that_was_not_copied_must_be_named(backbones: dict[str, Path], store: Path, tmp_path: Path) -> None:
    argv = training_options(store, backbones["llama"], tmp_path / "run", max_steps=1, save_backbone="never")
    output = finetune(argv)
    assert not (output / "backbone").exists()
    with pytest.raises(UserError, match="was not copied into it; name its folder or file with --backbone"):
        load_checkpoint(output)
    assert len(answers(output, store, backbones["llama"])) == 6


def test_another_backbone_is_refused_with_both_fingerprints_named(trained: Path, other_backbone: Path) -> None:
    reference = CheckpointDescription.load(trained).backbone
    assert reference is not None
    with pytest.raises(UserError) as caught:
        load_checkpoint(trained, backbone=str(other_backbone))
    assert folder_fingerprint(other_backbone)[:12] in str(caught.value)
    assert str(reference.fingerprint)[:12] in str(caught.value)


def test_a_copied_backbone_whose_weights_were_exchanged_is_refused_too(copied: Path, other_backbone: Path) -> None:
    shutil.copy(other_backbone / "model.safetensors", copied / "backbone" / "model.safetensors")
    with pytest.raises(UserError, match=r"fingerprint .*…, but .* was trained on a backbone"):
        load_checkpoint(copied)


def test_a_backbone_folder_without_a_configuration_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_checkpoint(trained, backbone=str(tmp_path))


def test_a_backbone_for_an_adapter_alone_and_a_hub_name_are_told_apart(tmp_path: Path) -> None:
    reference = BackboneReference("someone/model-7b")
    assert find_backbone(reference, tmp_path, None) == "someone/model-7b"
    assert find_backbone(reference, tmp_path, "elsewhere/model-7b") == "elsewhere/model-7b"
    assert save_backbone_reference("someone/model-7b", tmp_path, "always", "none", "float32") == reference
    assert not (tmp_path / "backbone").exists()


def test_the_fingerprint_changes_with_weights_and_configuration(backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "copy"))
    first = folder_fingerprint(folder)
    assert first == folder_fingerprint(backbones["llama"])
    (folder / "tokenizer_config.json").write_text("{}")
    assert folder_fingerprint(folder) == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert folder_fingerprint(folder) != first


FILES = ("llm_mer.json", "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
BACKBONE_FILES = ("backbone/config.json", "backbone/model.safetensors")


@pytest.mark.parametrize("name", [*FILES, *BACKBONE_FILES])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_missing_or_cut_off_file_is_one_clear_error(name: str, damage: str, copied: Path) -> None:
    path = copied / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        load_checkpoint(copied)
    message = str(caught.value)
    assert str(copied) in message
    assert "\n" not in message.strip()


def test_a_folder_that_is_no_checkpoint_and_a_newer_format_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it is not a checkpoint written by finetune\.py"):
        load_checkpoint(tmp_path)
    entry = json.loads((copied / "llm_mer.json").read_text())
    (copied / "llm_mer.json").write_text(json.dumps({**entry, "format": 99}))
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        load_checkpoint(copied)
    (copied / "llm_mer.json").write_text(json.dumps({**entry, "colour": "red"}))
    with pytest.raises(UserError, match="damaged or edited"):
        load_checkpoint(copied)


def test_weights_that_do_not_fit_the_description_are_refused(copied: Path) -> None:
    from safetensors.torch import save_file

    path = copied / "adapter_model.safetensors"
    state = adapter_weights(copied)
    gone = next(name for name in state if name.endswith("fusion_adapter.fusion.weight"))
    save_file({k: v for k, v in state.items() if k != gone}, path)
    with pytest.raises(UserError, match=r"missing \[.*fusion.weight"):
        load_checkpoint(copied)
    save_file({**state, "base_model.model.model.fusion_adapter.nobody": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"unexpected \[.*nobody"):
        load_checkpoint(copied)
    save_file({**state, gone: torch.zeros(3, 3)}, path)
    with pytest.raises(UserError, match=r"fusion\.weight"):
        load_checkpoint(copied)


def test_parameters_only_training_needs_are_dropped_from_the_weights(tmp_path: Path, copied: Path) -> None:
    before = adapter_weights(copied)
    assert drop_training_only_parameters(copied, ()) == 0
    count = sum(".head." in name for name in before)
    assert drop_training_only_parameters(copied, ("head.",)) == count > 0
    assert adapter_weights(copied).keys() == {name for name in before if ".head." not in name}


def test_an_adapter_with_training_only_parts_loads_without_them(
    backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    output = finetune(training_options(store, backbones["llama"], tmp_path / "run", adapter="lpgnet", max_steps=2))
    prefixes = fusion_adapter_of(load_checkpoint(output).model).training_only_parameters()
    assert prefixes
    assert not any(f".{prefix}" in f".{name}" for prefix in prefixes for name in adapter_weights(output))
    assert len(answers(output, store)) == 6


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_damaged_weights_of_an_adapter_alone_are_one_clear_error(damage: str, store: Path, tmp_path: Path) -> None:
    output = finetune(training_options(store, "none", tmp_path / "run", max_steps=1))
    path: Any = output / "model.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_checkpoint(output)
