"""Tiny backbones: deterministic, cached, written completely or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights

import llm_mer.backbones.tiny
from llm_mer.backbones.loading import load_backbone
from llm_mer.backbones.tiny import TinyBackboneConfig, build_untrained_model, cache_key, train_tiny_backbone
from llm_mer.backbones.tiny_options import cache_folder
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import builtin_tasks

QUICK = TinyBackboneConfig(vocabulary=1000, hidden_size=32, layers=2, heads=2, lines=800, steps=4, batch_size=4, length=32)


def train(cache: Path, **changes: Any) -> Path:
    return train_tiny_backbone(dataclasses.replace(QUICK, **changes), cache, progress=False)


@pytest.mark.parametrize("architecture", ["llama", "glm", "qwen2"])
def test_training_is_deterministic_in_its_seed_and_loads(architecture: str, tmp_path: Path) -> None:
    first, second, other = (
        train(tmp_path / name, architecture=architecture, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    one, two, three = (adapter_weights(folder) for folder in (first, second, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert not all(value.shape == three[name].shape and torch.equal(value, three[name]) for name, value in one.items())
    loaded = load_backbone(first)
    assert loaded.model.config.model_type == architecture
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size


def test_training_neither_reads_nor_moves_the_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = train(tmp_path / "a")
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(6)
    second = train(tmp_path / "b")
    assert all(torch.equal(v, adapter_weights(second)[n]) for n, v in adapter_weights(first).items())


def test_a_trained_backbone_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(tmp_path)
    assert folder == tmp_path / cache_key(QUICK)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]

    def refuse(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(llm_mer.backbones.tiny, "train_model", refuse)
    assert train(tmp_path) == folder
    with pytest.raises(AssertionError, match="trained again"):
        train(tmp_path, steps=5)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_every_option_but_the_place_enters_the_key() -> None:
    keys = {cache_key(QUICK)}
    for entry in dataclasses.fields(QUICK):
        value = getattr(QUICK, entry.name)
        changed = {"architecture": "glm", "output": "elsewhere"}.get(entry.name, value)
        changed = value + 1 if changed == value else changed
        keys.add(cache_key(dataclasses.replace(QUICK, **{entry.name: changed})))
    assert len(keys) == len(dataclasses.fields(QUICK))  # the place is the one that changes nothing


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MER_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/backbones")
    monkeypatch.delenv("LLM_MER_CACHE")
    assert cache_folder() == Path(".llm_mer_cache/backbones")


def test_a_named_folder_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no tiny backbone"):
        train_tiny_backbone(dataclasses.replace(QUICK, output=str(tmp_path)), progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_named_folder_is_replaced_when_the_options_changed(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    train(tmp_path, output=str(target))
    before = adapter_weights(target)
    train(tmp_path, output=str(target), seed=3)
    assert json.loads((target / "tiny_backbone.json").read_text())["config"]["seed"] == 3
    after = adapter_weights(target)
    assert not all(v.shape == after[n].shape and torch.equal(v, after[n]) for n, v in before.items())


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="'bert' is not one of llama, glm, qwen2"):
        build_untrained_model(dataclasses.replace(QUICK, architecture="bert"), 100)


def test_every_label_word_is_written_without_bytes_and_read_back(tokenizer: Any) -> None:
    for task in builtin_tasks().values():
        for label in task.labels:
            for word in label.words.values():
                ids = tokenizer(word, add_special_tokens=False)["input_ids"]
                pieces = tokenizer.convert_ids_to_tokens(ids)
                assert not any(piece.startswith("<0x") or piece == "<unk>" for piece in pieces), (word, pieces)
                assert tokenizer.decode(ids).strip().casefold() == word.casefold()


def test_text_outside_the_vocabulary_survives_as_bytes(tokenizer: Any) -> None:
    text = "a ☂ and 龘"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "glm"])
def test_the_full_training_is_far_better_than_a_unigram_model(architecture: str, tmp_path: Path) -> None:
    folder = train_tiny_backbone(TinyBackboneConfig(architecture=architecture), tmp_path, progress=False)
    report = json.loads((folder / "tiny_backbone.json").read_text())["report"]
    assert report["perplexity"] < 0.25 * report["unigram_perplexity"]


def test_each_set_of_labels_enters_the_text_once_whatever_the_number_of_tasks_that_ask_for_it() -> None:
    from llm_mer.backbones.tiny_text import builtin_label_sets
    from llm_mer.prompting.tasks import builtin_tasks

    sets = builtin_label_sets()
    asked = [task.labels for task in builtin_tasks().values() if task.labels]
    assert len(asked) > len(sets)  # IEMOCAP's four labels belong to two tasks
    assert all(sets.count(labels) == 1 for labels in asked)
