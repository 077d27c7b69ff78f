"""What the other tests show on a CPU, on the device that LLM_MER_TEST_DEVICE names (``cuda``); ``make test-gpu`` runs them.

``LLM_MER_TEST_DEVICE=cpu`` runs the same code where there is no GPU, which shows that the tests themselves run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights, build_quantisable, make_utterances

from llm_mer.cli.train import finetune
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

DEVICE = os.environ.get("LLM_MER_TEST_DEVICE", "")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DEVICE, reason="LLM_MER_TEST_DEVICE names no device"),
]
ROWS = [{"question": index} for index in range(11)]
CUDA = DEVICE.startswith("cuda")
FLASH = CUDA and find_spec("flash_attn") is not None
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def test_the_device_is_there_and_used(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments()))
    assert trainer.args.device.type == torch.device(DEVICE).type


def test_answers_on_the_device_are_those_of_the_cpu(trained: Path) -> None:
    utterances = make_utterances("test", 24)
    here, there = (MerPipeline.from_pretrained(trained, device=name)(utterances) for name in ("cpu", DEVICE))
    for expected, found in zip(here, there, strict=True):
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=2e-2)
        if expected.task == "emotion":
            best = sorted(expected.log_probabilities)
            assert found.value == expected.value or best[-1] - best[-2] < 2e-2


def test_without_ends_and_in_any_batch_answers_on_the_device_stay(trained: Path) -> None:
    utterances = make_utterances("test", 24)
    for end in (True, False):
        one, other = (
            MerPipeline.from_pretrained(trained, device=DEVICE, answer_end=end, batch_size=size)(utterances, ["emotion"])
            for size in (1, 24)
        )
        for expected, found in zip(one, other, strict=True):
            assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=2e-2)


def test_training_in_bf16_on_the_device_learns_and_its_checkpoint_answers_on_a_cpu(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes = {"num_train_epochs": 6, "learning_rate": "1e-2", "per_device_train_batch_size": 16}
    output = finetune(arguments(bf16="true", dtype="bfloat16", **changes))
    losses = [float(e["loss"]) for e in json.loads((output / "log_history.json").read_text()) if "loss" in e]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    fresh = finetune(arguments(output=tmp_path / "fresh", bf16="true", dtype="bfloat16", max_steps=1, learning_rate="0"))
    begun, ended = adapter_weights(fresh), adapter_weights(output)
    for part in ("fusion_adapter", "lora_B"):
        assert any(not torch.equal(ended[name], value) for name, value in begun.items() if part in name)
    for prediction in MerPipeline.from_pretrained(output, device="cpu")(make_utterances("test", 4)):
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-4)


def gradients(model: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Loss and all gradients in one vector, under bf16 autocast."""
    model.zero_grad()
    given = {name: value.to(DEVICE) for name, value in batch.items()}
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        output = model(**given, use_cache=False)
        loss = output.loss + sum(output.fusion.aux_losses.values())
    loss.backward()
    found = [p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(found)


@pytest.mark.parametrize(
    ("attention", "share"),
    [
        ("sdpa", False),
        ("sdpa", True),
        pytest.param(
            "flash_attention_2", False, marks=pytest.mark.skipif(not FLASH, reason="flash_attn on a GPU is not there")
        ),
    ],
)
def test_packed_batches_on_the_device_have_the_loss_and_gradients_of_padded_ones(
    attention: str, share: bool, arguments: Callable[..., list[str]]
) -> None:
    changes = {"packing_length": 300, "prompts": "preamble", "attn_implementation": attention, "dtype": "bfloat16"}
    trainer = build_trainer(parse_arguments(arguments(**changes)))
    model, collator = trainer.model.to(DEVICE).eval(), trainer.data_collator.collator
    collator.share_prefixes = share
    packed = collator(ROWS)
    collator.packing_length = None
    padded = collator(ROWS)
    assert ("shared_prefix_ids" in packed) == share
    (one, expected), (other, found) = gradients(model, padded), gradients(model, packed)
    assert other == pytest.approx(one, rel=2e-2)
    assert float(torch.nn.functional.cosine_similarity(expected, found, dim=0)) > 0.99


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_training_on_the_device_moves_adapter_and_lora(
    quantization: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    build_quantisable(tmp_path / "backbone")
    changes = {"backbone": tmp_path / "backbone", "quantization": quantization, "dtype": "bfloat16"}
    fresh = finetune(arguments(output=tmp_path / "fresh", max_steps=1, learning_rate="0", **changes))
    output = finetune(arguments(output=tmp_path / "run", max_steps=6, **changes))
    begun, ended = adapter_weights(fresh), adapter_weights(output)
    for part in ("fusion_adapter", "lora_A", "lora_B"):
        moved = [float((ended[name] - value).abs().max()) for name, value in begun.items() if part in name]
        assert max(moved) > 1e-4
    assert all(bool(value.isfinite().all()) for value in ended.values())


@pytest.mark.skipif(not CUDA or find_spec("liger_kernel") is None, reason="liger-kernel on a GPU is not there")
def test_fused_kernels_on_the_device_leave_loss_and_gradients(arguments: Callable[..., list[str]]) -> None:
    losses, found = [], []
    for use in ("false", "true"):
        trainer = build_trainer(parse_arguments(arguments(dtype="bfloat16", use_liger_kernel=use)))
        loss, gradient = gradients(trainer.model.to(DEVICE).eval(), trainer.data_collator.collator(ROWS))
        losses.append(loss)
        found.append(gradient)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert float(torch.nn.functional.cosine_similarity(*found, dim=0)) > 0.99


def test_checkpointed_activations_leave_the_gradients(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(dtype="bfloat16")))
    model, batch = trainer.model.to(DEVICE), trainer.data_collator.collator(ROWS)
    one, expected = gradients(model, batch)
    conditional_generation_of(model).model.language_model.gradient_checkpointing_enable()
    other, found = gradients(model, batch)
    assert other == pytest.approx(one, rel=1e-2)
    assert float(torch.nn.functional.cosine_similarity(expected, found, dim=0)) > 0.99
