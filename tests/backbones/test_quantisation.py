"""NF4 and int8 backbones on a CPU: LoRA and the adapter train beside frozen quantised weights, in full precision."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_quantisable, training_options
from torch import nn

from llm_mer.backbones.loading import load_backbone
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.errors import UserError
from llm_mer.inference.predictor import Predictor
from llm_mer.model.modeling_mer import fusion_adapter_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (extra quantization) is not installed"
)

KINDS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
# Quantiles of a normal distribution: the sixteen values of NF4 (arXiv 2305.14314, appendix E).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def quantised_layers(model: nn.Module, quantization: str) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if type(m).__name__ == KINDS[quantization]}


@pytest.fixture(scope="module", params=list(KINDS))
def quantization(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backbone(shared: Any) -> Path:
    folder: Path = shared.make("quantisable", build_quantisable)
    return folder


def build(backbone: Path, store: Path, output: Path, quantization: str, **changes: Any) -> Any:
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.setup import build_trainer

    options = {"quantization": quantization, "max_steps": 2, "warmup_steps": 0, "lora_r": 2, **changes}
    return build_trainer(parse_arguments(training_options(store, backbone, output, **options)))


def test_every_projection_of_the_blocks_is_quantised_and_the_rest_is_not(quantization: str, backbone: Path) -> None:
    loaded = load_backbone(backbone, quantization=quantization).model
    targets = find_lora_targets(loaded)
    assert targets == find_lora_targets(load_backbone(backbone).model)
    assert len(quantised_layers(loaded, quantization)) == 2 * len(targets)
    assert loaded.get_input_embeddings().weight.dtype == torch.float32
    assert loaded.get_output_embeddings().weight.dtype == torch.float32


@torch.no_grad()
def test_quantised_weights_are_the_nearest_values_of_their_format(quantization: str, backbone: Path) -> None:
    """Written once more: NF4 blocks of 64 over their largest value, int8 rows over theirs."""
    from peft.utils.integrations import dequantize_module_weight

    plain = dict(load_backbone(backbone).model.named_modules())
    loaded = load_backbone(backbone, quantization=quantization).model
    for name, module in quantised_layers(loaded, quantization).items():
        weight = plain[name].weight.double().numpy()
        found = dequantize_module_weight(module).double().numpy()
        if quantization == "nf4":
            blocks = weight.reshape(-1, 64)
            scale = np.abs(blocks).max(axis=1, keepdims=True)
            places = np.abs(blocks[..., None] / scale[..., None] - np.array(NF4)).argmin(axis=-1)
            expected = (np.array(NF4)[places] * scale).reshape(weight.shape)
            # The scales are themselves kept in eight bits (double quantisation).
            assert np.abs(found - expected).max() < 0.02 * np.abs(weight).max()
        else:
            scale = np.abs(weight).max(axis=1, keepdims=True)
            expected = np.round(weight / scale * 127) * scale / 127
            assert np.abs(found - expected).max() < 1e-2 * np.abs(weight).max()


def test_nf4_rows_that_are_no_whole_blocks_are_refused_on_a_cpu(backbones: dict[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"layers\.0\.self_attn\.q_proj has 48 inputs, no multiple of 64.*use quantization int8"
    ):
        load_backbone(backbones["llama"], quantization="nf4")


def test_training_moves_lora_and_the_adapter_in_float32_and_leaves_quantised_weights(
    quantization: str, backbone: Path, store: Path, tmp_path: Path
) -> None:
    trainer = build(backbone, store, tmp_path, quantization)
    model = trainer.model
    assert len(quantised_layers(model, quantization)) == 14
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "fusion_adapter.modules_to_save" in name for name in trainable)
    # TRL would cast what trains beside quantised weights to bfloat16, the adapter too.
    assert {before[name].dtype for name in trainable} == {torch.float32}
    trainer.train()
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name].detach())}
    assert moved <= trainable
    assert {name for name in trainable if "lora_" in name} <= moved
    assert any("fusion_adapter" in name for name in moved)
    assert {after[name].dtype for name in trainable} == {torch.float32}


def test_training_after_scoring_still_has_gradients(quantization: str, backbone: Path, store: Path, tmp_path: Path) -> None:
    """bitsandbytes packs NF4 weights in a forward without gradient on CPUs with AVX512-BF16; then LoRA learnt nothing."""
    trainer = build(backbone, store, tmp_path, quantization)
    model, dataset = trainer.model, trainer.data_collator.collator.dataset
    for _, module in quantised_layers(model, "nf4").items():
        assert module.support_avx512bf16_for_cpu is False
    batch = trainer.data_collator([{"question": i} for i in range(4)])

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    before = gradients()
    Predictor(model, trainer.processor).predict(dataset, list(range(4)))
    after = gradients()
    assert before.keys() == after.keys()
    first = [name for name in before if "layers.0." in name and "lora_A" in name]
    assert len(first) == 7
    for name in [*first, *(n for n in before if "fusion_adapter" in n)]:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-6)
    # Through every quantised layer, down to the first block and to the pseudo tokens before it.
    assert all(before[name].abs().max() > 0 for name in first)
    assert any(before[name].abs().max() > 0 for name in before if "fusion_adapter" in name and "pseudo_tokens" in name)


def test_gradients_through_a_quantised_layer_are_those_of_its_dequantised_weight(quantization: str, backbone: Path) -> None:
    from peft.utils.integrations import dequantize_module_weight

    loaded = load_backbone(backbone, quantization=quantization).model
    module = next(iter(quantised_layers(loaded, quantization).values()))
    weight = dequantize_module_weight(module).detach().double()
    torch.manual_seed(0)
    x = torch.randn(5, weight.shape[1])
    with torch.no_grad():
        module(x)  # as scoring does, before training goes on
    given = x.clone().requires_grad_()
    outward = torch.randn(5, weight.shape[0])
    output = module(given)
    output.backward(outward)
    assert given.grad is not None
    # int8 rounds the activations to eight bits too, and computes in float16.
    tolerance = 1e-5 if quantization == "nf4" else 2e-2
    scale = float((x.double() @ weight.T).abs().max())
    assert float((output.detach().double() - x.double() @ weight.T).abs().max()) < tolerance * scale
    expected = outward.double() @ weight
    assert float((given.grad.double() - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_the_adapter_of_a_bfloat16_quantised_backbone_stays_in_float32(
    quantization: str, backbone: Path, store: Path, tmp_path: Path
) -> None:
    trainer = build(backbone, store, tmp_path, quantization, dtype="bfloat16")
    assert {p.dtype for p in fusion_adapter_of(trainer.model).parameters()} == {torch.float32}
    assert trainer.model.get_input_embeddings().weight.dtype == torch.bfloat16
    loss = trainer.model(**trainer.data_collator([{"question": i} for i in range(2)]), use_cache=False).loss
    loss.backward()
    grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("lora_B" in name and grad.abs().max() > 0 for name, grad in grads.items())
    assert all(torch.isfinite(grad).all() for grad in grads.values())
