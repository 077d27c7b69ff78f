"""The wrapped model: nothing changes without pseudo tokens, and they enter exactly at their positions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, AUDIO_SIZE, VISION_SIZE
from torch.utils import _pytree

from llm_mer.adapters import adapter_class, adapter_names
from llm_mer.adapters.base import FusionOutput
from llm_mer.backbones.loading import embedding_norm, load_backbone
from llm_mer.model.configuration_mer import MerConfig, build_adapter_config
from llm_mer.model.modeling_mer import (
    MerForConditionalGeneration,
    MerHeadModel,
    conditional_generation_of,
    describe_parameters,
    fusion_adapter_of,
    fusion_inputs,
)

FILLER, COUNT, END = 0, 3, 2

HEAD_OPTIONS: dict[str, Any] = {
    "hidden_size": 16,
    "num_heads": 2,
    "num_pseudo_tokens": 0,
    "auxiliary_head": True,
    "num_classes": 4,
    "score_range": [-3, 3],
    "feature_sizes": {"audio": AUDIO_SIZE, "vision": VISION_SIZE},
}
"""An adapter alone, on audio and vision."""


def wrap(folder: Path, **options: Any) -> tuple[Any, MerForConditionalGeneration]:
    """A backbone loaded twice: bare, and inside the model."""
    bare = load_backbone(folder).model
    inner = load_backbone(folder).model
    hidden = int(inner.config.hidden_size)
    chosen = {
        "hidden_size": 16,
        "num_heads": 2,
        "dropout": 0.0,
        "num_pseudo_tokens": COUNT,
        "backbone_size": hidden,
        "backbone_embedding_norm": embedding_norm(inner),
        "feature_sizes": {"text": hidden, "audio": AUDIO_SIZE, "vision": VISION_SIZE},
        "num_classes": 4,
        **options,
    }
    config = MerConfig(
        text_config=inner.config,
        adapter="egmf",
        adapter_config=dataclasses.asdict(build_adapter_config("egmf", chosen)),
    )
    torch.manual_seed(0)
    return bare, MerForConditionalGeneration.from_backbone(inner, config).eval()


def features(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text_ids": torch.randint(10, 60, (batch, 4), generator=generator),
        "text_mask": torch.ones(batch, 4, dtype=torch.bool),
        "audio_features": torch.randn(batch, 5, AUDIO_SIZE, generator=generator),
        "audio_mask": torch.ones(batch, 5, dtype=torch.bool),
        "vision_features": torch.randn(batch, 3, VISION_SIZE, generator=generator),
        "vision_mask": torch.ones(batch, 3, dtype=torch.bool),
    }


def prompts(lengths: tuple[int, ...] = (11, 8), left: bool = True, extra: int = 0) -> dict[str, torch.Tensor]:
    """Prompts of random tokens with the pseudo tokens from their third place on, padded on a side."""
    generator = torch.Generator().manual_seed(5)
    longest = max(lengths) + extra
    ids = torch.full((len(lengths), longest), FILLER)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    places = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = longest - length if left else 0
        ids[row, start : start + length] = torch.randint(10, 60, (length,), generator=generator)
        mask[row, start : start + length] = 1
        places[row, start + 2 : start + 2 + COUNT] = True
        ids[row, start + 2 : start + 2 + COUNT] = FILLER
    return {"input_ids": ids, "attention_mask": mask, "pseudo_token_mask": places}


@pytest.fixture(params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, backbones: dict[str, Path]) -> tuple[Any, MerForConditionalGeneration]:
    return wrap(backbones[request.param])


@pytest.fixture
def model(backbones: dict[str, Path]) -> MerForConditionalGeneration:
    return wrap(backbones["llama"])[1]


@torch.no_grad()
def test_wrapping_leaves_the_backbones_logits_identical_without_pseudo_tokens(
    pair: tuple[Any, MerForConditionalGeneration],
) -> None:
    bare, wrapped = pair
    inputs = {k: v for k, v in prompts().items() if k != "pseudo_token_mask"}
    assert torch.equal(wrapped(**inputs).logits, bare(**inputs).logits)


@torch.no_grad()
def test_pseudo_tokens_stand_exactly_at_their_places(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    bare, wrapped = pair
    inputs, given = prompts(), features(2)
    tokens = wrapped.model.fuse(dict(given)).pseudo_tokens
    embeds = bare.get_input_embeddings()(inputs["input_ids"]).clone()
    for row, places in enumerate(inputs["pseudo_token_mask"]):
        embeds[row, places] = tokens[row]
    expected = bare(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(wrapped(**inputs, **given).logits, expected)


@torch.no_grad()
def test_positions_before_the_pseudo_tokens_do_not_see_the_features_and_those_after_do(
    pair: tuple[Any, MerForConditionalGeneration],
) -> None:
    _, wrapped = pair
    inputs = prompts((9, 9))
    first, second = (wrapped(**inputs, **features(2, seed)).logits for seed in (0, 1))
    assert torch.equal(first[:, :2], second[:, :2])
    assert ((first[:, 2:] - second[:, 2:]).abs().amax(dim=-1) > 1e-6).all()


@torch.no_grad()
def test_the_embedding_of_the_filler_is_never_read(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    _, wrapped = pair
    inputs, given = prompts((9, 9)), features(2)  # no padding, so the filler stands at pseudo tokens only
    expected = wrapped(**inputs, **given)
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["pseudo_token_mask"], 77)}
    assert torch.equal(wrapped(**other, **given).logits, expected.logits)
    wrapped.get_input_embeddings().weight[FILLER] = float("nan")
    assert torch.equal(wrapped.model(**inputs, **given).last_hidden_state, wrapped.model(**other, **given).last_hidden_state)


def test_a_prompt_with_too_few_places_is_refused(model: MerForConditionalGeneration) -> None:
    inputs = prompts()
    inputs["pseudo_token_mask"][1] = False
    with pytest.raises(ValueError, match=r"3 pseudo-token positions, found \[3, 0\]"):
        model(**inputs, **features(2))


@torch.no_grad()
def test_with_labels_the_logits_are_those_of_the_answer_positions(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    _, wrapped = pair
    inputs, given = prompts(left=False, extra=2), features(2)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 9:11] = torch.tensor([20, END])
    labels[1, 6:8] = torch.tensor([31, END])
    output = wrapped(**inputs, **given, labels=labels)
    full = wrapped(**inputs, **given).logits
    rows = torch.cat([full[0, 8:10], full[1, 5:7]])
    assert torch.allclose(output.logits, rows, atol=1e-5)
    nll = torch.nn.functional.cross_entropy(rows, torch.tensor([20, END, 31, END]), reduction="sum")
    assert torch.allclose(output.loss_sum, nll, atol=1e-4)
    assert torch.allclose(output.loss, nll / 4, atol=1e-5)


def test_a_batch_without_answers_has_zero_loss_that_keeps_the_graph(model: MerForConditionalGeneration) -> None:
    inputs = prompts(left=False)
    output = model(**inputs, **features(2), labels=torch.full_like(inputs["input_ids"], -100))
    output.loss_sum.backward()
    assert float(output.loss) == 0.0
    assert all(p.grad is not None for p in model.model.fusion_adapter.pseudo_tokens.parameters())


@torch.no_grad()
def test_generation_with_and_without_cache_is_equal_and_runs_the_adapter_once_with_it(
    pair: tuple[Any, MerForConditionalGeneration],
) -> None:
    _, wrapped = pair
    calls: list[int] = []
    wrapped.model.fusion_adapter.register_forward_hook(lambda *_: calls.append(1))
    inputs, given = prompts(), features(2)
    generated = []
    for cache in (True, False):
        calls.clear()
        generated.append(
            wrapped.generate(
                **inputs, **given, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=FILLER, eos_token_id=None
            )
        )
        assert len(calls) == (1 if cache else 6)
    assert torch.equal(*generated)
    assert generated[0].shape[1] == inputs["input_ids"].shape[1] + 6


@torch.no_grad()
def test_generation_depends_on_the_features(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    _, wrapped = pair
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": FILLER, "eos_token_id": None}
    found = {tuple(wrapped.generate(**prompts(), **features(2, s), **arguments).flatten().tolist()) for s in range(6)}
    assert len(found) > 1


@torch.no_grad()
def test_left_padding_changes_neither_logits_nor_generation(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    _, wrapped = pair
    given = features(2)
    padded, alone = prompts((11, 7)), []
    for row, length in enumerate((11, 7)):
        single = {k: v[row : row + 1, -length:] for k, v in padded.items()}
        alone.append((single, {k: v[row : row + 1] for k, v in given.items()}, length))
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    together = wrapped(**padded, **given, position_ids=positions).logits
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": FILLER, "eos_token_id": None}
    answers = wrapped.generate(**padded, **given, **arguments)
    for row, (single, own, length) in enumerate(alone):
        assert torch.allclose(wrapped(**single, **own).logits[0], together[row, -length:], atol=2e-4)
        assert torch.equal(wrapped.generate(**single, **own, **arguments)[0, -5:], answers[row, -5:])


def test_gradient_checkpointing_gives_equal_gradients(pair: tuple[Any, MerForConditionalGeneration]) -> None:
    _, wrapped = pair
    inputs, given = prompts(left=False), features(2)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 6:8] = 20
    for parameter in wrapped.parameters():
        parameter.requires_grad_(True)
    wrapped.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            wrapped.gradient_checkpointing_enable({"use_reentrant": False})
            assert wrapped.is_gradient_checkpointing
        wrapped.zero_grad()
        wrapped(**inputs, **given, labels=labels, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-6), name


@torch.no_grad()
def test_saving_and_loading_the_whole_model_is_exact(pair: tuple[Any, MerForConditionalGeneration], tmp_path: Path) -> None:
    _, wrapped = pair
    wrapped.save_pretrained(tmp_path)
    again, info = MerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected, found = wrapped.state_dict(), again.eval().state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    inputs, given = prompts(), features(2)
    assert torch.equal(wrapped(**inputs, **given).logits, again(**inputs, **given).logits)


def test_the_attention_choice_of_the_backbone_survives_wrapping(backbones: dict[str, Path]) -> None:
    inner = load_backbone(backbones["llama"], attn_implementation="eager").model
    options = {"backbone_size": 48, "feature_sizes": {"audio": AUDIO_SIZE}, "hidden_size": 16}
    config = MerConfig(text_config=inner.config, adapter="egmf", adapter_config=options)
    wrapped = MerForConditionalGeneration.from_backbone(inner, config)
    assert wrapped.model.language_model.config._attn_implementation == "eager"


def test_the_head_model_reads_the_adapters_head_only() -> None:
    model = MerHeadModel(MerConfig(adapter="egmf", adapter_config=HEAD_OPTIONS)).eval()
    given = {k: v for k, v in features(2).items() if not k.startswith("text")}
    output = model(**given, class_targets=torch.tensor([1, -100]), score_targets=torch.tensor([float("nan"), 1.0]))
    assert output.fusion.logits.shape == (2, 4)
    assert output.fusion.scores.shape == (2,)
    assert set(output.fusion.aux_losses) == {"ce", "l1"}
    assert output.loss_sum is None


def test_ddp_and_fsdp_find_every_tensor_of_the_output_the_adapters_among_them(model: MerForConditionalGeneration) -> None:
    inputs = prompts(left=False)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, **features(2), labels=labels)
    found = {id(leaf) for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)}
    fusion = output.fusion
    assert {id(fusion.pseudo_tokens), id(output.loss_sum), *map(id, fusion.diagnostics.values())} <= found
    # What DDP does: flatten, replace every tensor, rebuild.
    leaves, spec = _pytree.tree_flatten(output)
    again = _pytree.tree_unflatten([leaf + 1 if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], spec)
    assert type(again.fusion) is type(fusion)
    assert torch.equal(again.fusion.pseudo_tokens, fusion.pseudo_tokens + 1)


def test_no_value_is_read_from_another_device_in_a_forward(model: MerForConditionalGeneration) -> None:
    # Without a mask of padding, of which transformers itself asks the device whether it has any.
    inputs = {name: value.to("meta") for name, value in prompts().items() if name != "attention_mask"}
    given = FusionOutput(torch.zeros(2, COUNT, model.config.get_text_config().hidden_size, device="meta"))
    packed = {
        "sample_ids": torch.zeros_like(inputs["input_ids"]),
        "position_ids": torch.zeros_like(inputs["input_ids"]),
        **inputs,
    }
    away = model.to("meta")  # whose tensors have no values: to read one is an error
    for batch in (inputs, packed):
        assert away(**batch, fusion=given).logits.shape[:2] == inputs["input_ids"].shape


def test_features_without_a_mask_and_ids_without_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match="audio_features came without audio_mask"):
        fusion_inputs({"audio_features": torch.zeros(1, 2, 3)})
    with pytest.raises(ValueError, match="no backbone whose embeddings"):
        fusion_inputs({"text_ids": torch.zeros(1, 2, dtype=torch.long), "text_mask": torch.ones(1, 2)})


def test_parameters_are_counted_and_parts_found_under_peft(model: MerForConditionalGeneration) -> None:
    from llm_mer.training.model_builder import add_lora
    from llm_mer.training.options import ModelArguments

    own = sum(p.numel() for p in model.model.fusion_adapter.parameters())
    wrapped = add_lora(model, ModelArguments(lora_r=2))
    counts = describe_parameters(wrapped)
    assert counts["adapter"] == own
    assert own < counts["trainable"] < counts["total"]
    assert conditional_generation_of(wrapped) is model
    assert any("modules_to_save" in n for n, m in wrapped.named_modules() if m is fusion_adapter_of(wrapped))
    with pytest.raises(ValueError, match="found 0"):
        fusion_adapter_of(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="holds neither"):
        conditional_generation_of(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("adapter", sorted(adapter_names()))
def test_every_adapter_answers_alike_after_saving_and_loading(adapter: str, tmp_path: Path) -> None:
    vectors = (
        {m: 2 * size for m, size in HEAD_OPTIONS["feature_sizes"].items()} if adapter_class(adapter).uses_context else {}
    )
    options = {**HEAD_OPTIONS, "context_sizes": vectors}
    config = MerConfig(adapter=adapter, adapter_config=dataclasses.asdict(build_adapter_config(adapter, options)))
    torch.manual_seed(0)
    model = MerHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    again = MerHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    given = {name: value for name, value in features(3).items() if not name.startswith("text")}
    with torch.no_grad():
        expected, found = model(**given), again(**given)
    torch.testing.assert_close(expected.fusion.logits, found.fusion.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(expected.fusion.scores, found.fusion.scores, atol=1e-6, rtol=0)
