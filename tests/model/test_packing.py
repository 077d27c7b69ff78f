"""Packed batches: loss, gradients and weights are those of padded ones, whatever shares a row."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, adapter_weights
from double_precision import build_double_trainer, doubled
from transformers import LlamaConfig, Qwen2Config

import llm_mer.model.modeling_mer
import llm_mer.training.setup
from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.model.packing import SHARED_FROM, block_causal_mask, check_packing, pack_groups, pack_rows
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.sampling import GroupedByLength
from llm_mer.training.setup import build_trainer

ROWS = [{"question": index} for index in range(11)]
EAGER, SDPA = "eager", "sdpa"


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model's output and the gradient of language-model and auxiliary losses together."""
    model.zero_grad()
    output = model(**batch, use_cache=False)
    (output.loss + sum(output.fusion.aux_losses.values())).backward()
    return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def built(arguments: Callable[..., list[str]], **changes: Any) -> Any:
    return build_double_trainer(arguments(tasks=["emotion", "sentiment"], auxiliary_head="true", **changes))


def assert_equal(trainer: Any) -> dict[str, torch.Tensor]:
    """Padded and packed batches of the same questions give the same losses and gradients; returns the packed one.

    The weights are float64; norms, rotations and the loss are float32 inside transformers, and set the tolerance.
    """
    collator = trainer.data_collator.collator
    assert collator.packing_length is not None
    packed = doubled(collator(ROWS))
    collator.packing_length = None
    padded = doubled(collator(ROWS))
    assert packed["input_ids"].shape[0] < padded["input_ids"].shape[0] == len(ROWS)
    (one, expected), (other, found) = gradients(trainer.model, padded), gradients(trainer.model, packed)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.loss_sum, one.loss_sum, rtol=1e-6, atol=0)
    assert set(one.fusion.aux_losses) == set(other.fusion.aux_losses) != set()
    for name, value in one.fusion.aux_losses.items():
        torch.testing.assert_close(other.fusion.aux_losses[name], value, rtol=1e-6, atol=1e-9)
    assert any("lora_" in name for name in expected)
    assert any("fusion_adapter" in name for name in expected)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 2e-5 * float(value.norm()) + 1e-9, name
    return packed


@pytest.mark.parametrize("attention", [EAGER, SDPA])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_of_a_packed_batch_are_those_of_the_padded_one(
    architecture: str, attention: str, arguments: Callable[..., list[str]], backbones: dict[str, Path]
) -> None:
    trainer = built(arguments, backbone=backbones[architecture], packing_length=120, attn_implementation=attention)
    trainer.data_collator.collator.share_prefixes = False
    assert "shared_prefix_ids" not in assert_equal(trainer)


@pytest.mark.parametrize("attention", [EAGER, SDPA])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_stay_where_samples_stand_behind_one_copy_of_what_they_begin_with(
    architecture: str, attention: str, arguments: Callable[..., list[str]], backbones: dict[str, Path]
) -> None:
    changes = {"backbone": backbones[architecture], "packing_length": 300, "attn_implementation": attention}
    trainer = built(arguments, prompts="preamble", **changes)
    collator = trainer.data_collator.collator
    packed = assert_equal(trainer)
    groups = packed["language_ids"].shape[0] - len(ROWS)
    assert groups >= 2, "two tasks have two instructions"
    whole = sum(collator.length(collator.dataset.questions[row["question"]]) for row in ROWS)
    places = int((packed["sample_ids"] >= 0).sum())
    prefixes = int((packed["sample_ids"] >= len(ROWS)).sum())
    assert groups * SHARED_FROM <= prefixes
    assert places < 0.7 * whole


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_attention_that_reads_positions_all_rows_become_one_and_stay_equal(
    architecture: str, arguments: Callable[..., list[str]], backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flash attention needs a GPU; transformers' masks for sdpa find the samples in the same positions.
    trainer = built(arguments, backbone=backbones[architecture], packing_length=120)
    trainer.data_collator.collator.share_prefixes = False
    shapes = []
    inner = conditional_generation_of(trainer.model).model.language_model
    inner.register_forward_pre_hook(lambda _m, _a, given: shapes.append(given["inputs_embeds"].shape), with_kwargs=True)
    monkeypatch.setattr(llm_mer.model.modeling_mer, "attends_by_positions", lambda implementation: True)
    assert_equal(trainer)
    assert [shape[0] for shape in shapes] == [len(ROWS), 1]


def test_attention_that_reads_positions_is_never_given_a_shared_prefix(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = built(arguments, prompts="preamble", packing_length=300)
    batch = doubled(trainer.data_collator.collator(ROWS))
    monkeypatch.setattr(llm_mer.model.modeling_mer, "attends_by_positions", lambda implementation: True)
    with pytest.raises(ValueError, match="cannot let samples share a prefix"):
        trainer.model(**batch, use_cache=False)
    monkeypatch.setattr(llm_mer.training.setup, "attends_by_positions", lambda implementation: True)
    other = built(arguments, prompts="preamble", packing_length=300)
    assert "shared_prefix_ids" not in other.data_collator.collator(ROWS)


@pytest.mark.parametrize("adapter", ["lpgnet", "gated_xlstm"])
def test_conversation_context_and_routed_lora_follow_their_sample_into_its_row(
    adapter: str, arguments: Callable[..., list[str]]
) -> None:
    changes = {"adapter": adapter, "prompts": "preamble"}
    trainer = built(arguments, lora_sharing="per_language", packing_length=300, **changes)
    packed = assert_equal(trainer)
    assert set(packed["language_ids"].tolist()) == {0, 1}
    assert "shared_prefix_ids" in packed


def test_training_packed_ends_with_the_weights_of_training_padded(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A whole run with accumulation and a short last batch, in float32."""
    weights = {}
    for name, length in (("padded", None), ("packed", 200)):
        changes = {
            "prompts": "preamble",
            "packing_length": length,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 5,
        }
        finetune(arguments(output=tmp_path / name, max_steps=6, learning_rate="1e-4", **changes))
        weights[name] = adapter_weights(tmp_path / name)
    assert weights["padded"].keys() == weights["packed"].keys()
    for name, value in weights["padded"].items():
        torch.testing.assert_close(weights["packed"][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_sample_is_not_changed_by_what_shares_its_row(arguments: Callable[..., list[str]]) -> None:
    trainer = built(arguments, packing_length=10_000)
    batch = doubled(trainer.data_collator.collator(ROWS))
    assert batch["input_ids"].shape[0] == 1
    other = dict(batch)
    last = batch["sample_ids"] == len(ROWS) - 1  # all others stand before it
    other["input_ids"] = torch.where(last | batch["pseudo_token_mask"], batch["input_ids"], batch["input_ids"].flip(1))
    model = conditional_generation_of(trainer.model).model
    with torch.no_grad():
        one, two = (model(**{k: v for k, v in b.items() if k != "labels"}).last_hidden_state for b in (batch, other))
    assert torch.equal(one[last], two[last])
    assert not torch.equal(one[~last], two[~last])


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_stands_once_and_behind_its_own_beginning(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 4, size=40).tolist()
    shared = [[30, 12, SHARED_FROM - 1, 20][kind] for kind in kinds]
    lengths = [begin + int(rest) for begin, rest in zip(shared, random.integers(3, 40, size=40), strict=True)]
    rows = pack_groups([None if kind == 3 else kind for kind in kinds], shared, lengths, 200)
    groups = [group for row in rows for group in row]
    assert sorted(sample for group in groups for sample in group.samples) == list(range(40))
    for group in groups:
        if group.shared:
            (kind,) = {kinds[sample] for sample in group.samples}
            assert kind in (0, 1)
            assert all(shared[sample] == group.shared for sample in group.samples)
        else:
            assert len(group.samples) == 1
    assert all(sum(g.shared + sum(lengths[s] - g.shared for s in g.samples) for g in row) <= 200 for row in rows)
    assert sum(group.shared > 0 for group in groups) >= 2


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_every_sample_once_within_their_capacity_and_are_about_as_long(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 90, size=64).tolist()
    rows = pack_rows(lengths, 256)
    assert sorted(sample for row in rows for sample in row) == list(range(64))
    filled = [sum(lengths[sample] for sample in row) for row in rows]
    assert max(filled) <= 256
    assert len(rows) <= -(-sum(lengths) // 256) + 1
    # Graham's bound on the longest: the mean, and not quite one sample more.
    assert max(filled) <= sum(lengths) / len(rows) + (1 - 1 / len(rows)) * max(lengths)


def test_a_sample_longer_than_a_row_makes_rows_as_long_as_itself() -> None:
    assert pack_rows([50, 10, 20, 20], 30) == [[0], [1, 2, 3]]
    assert pack_rows([4], 30) == [[0]]


def test_a_place_sees_what_stands_before_it_in_its_own_sample() -> None:
    mask = block_causal_mask(torch.tensor([[0, 0, 1, 1, -1]]), None)[0, 0]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert mask.int().tolist() == expected


def test_a_place_sees_the_beginning_of_its_sample_too_and_nothing_of_those_who_share_it() -> None:
    samples, prefixes = torch.tensor([[2, 2, 0, 1, 1, -1]]), torch.tensor([[-2, -2, 2, 2, 2, -2]])
    mask = block_causal_mask(samples, None, prefixes)[0, 0]
    expected = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0]]
    assert mask.int().tolist() == [*expected, [0, 0, 0, 0, 0, 1]]


def test_a_packed_prompt_with_too_few_places_is_refused(arguments: Callable[..., list[str]]) -> None:
    trainer = built(arguments, packing_length=200)
    batch = doubled(trainer.data_collator.collator(ROWS))
    row, column = torch.nonzero(batch["pseudo_token_mask"])[0].tolist()
    batch["pseudo_token_mask"][row, column] = False
    with pytest.raises(ValueError, match=r"2 pseudo-token positions, found \[1, 2, 2"):
        trainer.model(**batch, use_cache=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing_length": 0}, "packing_length: 0; it must be at least 1"),
        ({"packing": "true"}, "packing: TRL's own knows no pseudo tokens; say packing_length"),
        ({"padding_free": "true"}, "padding_free: TRL's own"),
        ({"packing_length": 64, "backbone": "none"}, "packing_length: packs prompts, and backbone: none has none"),
    ],
)
def test_a_mistaken_option_is_refused_before_a_backbone_is_loaded(
    changes: dict[str, Any], message: str, arguments: Callable[..., list[str]], no_backbone: None
) -> None:
    with pytest.raises(UserError, match=message):
        build_trainer(parse_arguments(arguments(**changes)))


def test_a_backbone_in_which_samples_would_not_stay_apart_is_refused() -> None:
    sliding = Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1, num_hidden_layers=2)
    sliding._attn_implementation = SDPA
    with pytest.raises(UserError, match="this qwen2 has layers of sliding_attention"):
        check_packing(sliding, 1024)
    other = LlamaConfig()
    other._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="attention 'flex_attention' is not one of eager, sdpa, flash_attention_2"):
        check_packing(other, 1024)


def test_groups_of_alike_length_follow_from_seed_and_epoch_alone_and_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, size=1600).tolist()
    sampler = GroupedByLength(8, lengths, seed=5)
    first = list(sampler)
    torch.rand(3)  # the global state of torch has no part in it
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second
    assert sorted(first) == list(range(1600))

    def padding(order: list[int]) -> int:
        groups = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 1600, 8)]
        return sum(max(group) * len(group) - sum(group) for group in groups)

    assert padding(first) < 0.15 * padding(list(range(1600)))


def test_training_in_groups_of_alike_length_walks_every_question_and_evaluates(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes = {"train_sampling_strategy": "group_by_length", "eval_strategy": "epoch", "packing_length": 100}
    trainer = build_trainer(parse_arguments(arguments(**changes)))
    seen: list[int] = []
    collator = trainer.data_collator.collator
    asked = collator.dataset.questions
    lengths = trainer.train_dataset["length"]
    assert list(lengths) == [len(s.prompt.ids) + len(s.answer) for s in (collator.prepare(q, True) for q in asked)]
    inner = trainer.data_collator

    def watched(rows: Any) -> Any:
        seen.extend(row["question"] for row in rows if row["question"] < len(asked))
        return inner(rows)

    trainer.data_collator = watched
    trainer.train()
    assert sorted(seen) == list(range(len(asked)))
    assert any("eval_score" in entry for entry in trainer.state.log_history)


def test_batches_made_by_workers_train_the_same_weights_and_attention_is_said(
    arguments: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    for workers, attention in ((0, SDPA), (2, SDPA)):
        output = tmp_path / str(workers)
        changes = {"dataloader_num_workers": workers, "attn_implementation": attention, "packing_length": 100}
        caplog.clear()
        caplog.set_level(logging.INFO, "llm_mer")
        finetune(arguments(output=output, max_steps=4, **changes))
        assert f"{attention} attention" in caplog.text
        weights.append(adapter_weights(output))
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
