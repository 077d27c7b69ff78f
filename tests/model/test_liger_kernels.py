"""Kernels of liger-kernel change the time of a training, not its loss nor its gradients.

Where liger-kernel is installed they run here too, on the CPU by Triton's interpreter: TRITON_INTERPRET=1 pytest …
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.model.liger_kernels import check_liger, use_liger
from llm_mer.model.modeling_mer import MerForConditionalGeneration, conditional_generation_of
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

# Triton reads the variable when its own library is imported, which is before any test.
INTERPRETED = importlib.util.find_spec("liger_kernel") is not None and os.environ.get("TRITON_INTERPRET") == "1"
needs_liger = pytest.mark.skipif(not INTERPRETED, reason="needs liger-kernel (extra liger) and TRITON_INTERPRET=1")

Arguments = Callable[..., list[str]]
FAMILIES = ("llama", "glm", "qwen2")


@pytest.fixture(autouse=True)
def _unpatched() -> Iterator[None]:
    """transformers' modules as they were: liger-kernel exchanges functions and classes in them."""
    names = [f"transformers.models.{family}.modeling_{family}" for family in FAMILIES]
    before = {name: dict(vars(sys.modules[name])) for name in names if name in sys.modules}
    yield
    for name, content in before.items():
        vars(sys.modules[name]).update(content)


@pytest.fixture(autouse=True)
def _complete_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter with two things that compiled kernels have: floats that are float32 tensors, and ``rsqrt``."""
    if not INTERPRETED:
        return
    import numpy as np
    from liger_kernel.ops import rms_norm
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def as_compiled(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), language.float32)
        return language.tensor(handle, language.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", as_compiled)
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: language.rsqrt(x))


def first_batch(trainer: Any, count: int = 6) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = trainer.data_collator([{"question": i} for i in range(count)])
    return {name: value for name, value in inputs.items() if not name.endswith("_targets")}


def loss_and_gradients(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor], Any]:
    model.eval()  # no dropout
    model.zero_grad(set_to_none=True)
    output = model(**inputs, use_cache=False)
    output.loss_sum.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(output.loss_sum.detach()), gradients, output


def assert_alike(one: tuple[float, dict[str, Tensor], Any], two: tuple[float, dict[str, Tensor], Any]) -> None:
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    assert one[1].keys() == two[1].keys()
    assert len(one[1]) > 10
    for name, gradient in one[1].items():
        torch.testing.assert_close(two[1][name], gradient, rtol=0.0, atol=1e-4 * float(gradient.abs().max()) + 1e-7)


def restless(model: nn.Module) -> None:
    """LoRA that is not zero, or half of the gradients would be."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def built(arguments: Arguments, backbones: dict[str, Path], family: str, **changes: Any) -> Any:
    trainer = build_trainer(parse_arguments(arguments(backbone=backbones[family], **changes)))
    assert trainer.model is not None
    restless(trainer.model)
    return trainer


def test_a_loss_over_hidden_states_is_given_the_answers_alone_and_no_logits_are_made(
    arguments: Arguments, backbones: dict[str, Path]
) -> None:
    trainer = built(arguments, backbones, "llama")
    inputs = first_batch(trainer)
    plain = loss_and_gradients(trainer.model, inputs)
    core = conditional_generation_of(trainer.model)
    assert isinstance(core, MerForConditionalGeneration)
    seen: list[tuple[Any, ...]] = []

    def loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
        seen.append((hidden.shape, head.weight.shape, targets.tolist()))
        return F.cross_entropy(hidden @ head.weight.T, targets, reduction="sum")

    core.answer_loss = loss
    heads: list[int] = []
    core.lm_head.register_forward_hook(lambda *_: heads.append(1))
    other = loss_and_gradients(trainer.model, inputs)
    assert_alike(plain, other)
    answers = inputs["labels"][inputs["labels"] != -100].tolist()
    assert seen == [((len(answers), core.lm_head.in_features), core.lm_head.weight.shape, answers)]
    assert other[2].logits is None
    assert not heads
    assert plain[2].logits.shape == (len(answers), core.lm_head.out_features)


@needs_liger
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_pytorch(family: str, arguments: Arguments, backbones: dict[str, Path]) -> None:
    trainer = built(arguments, backbones, family)
    inputs = first_batch(trainer)
    plain = loss_and_gradients(trainer.model, inputs)
    said = use_liger(trainer.model)
    fused = loss_and_gradients(trainer.model, inputs)
    assert_alike(plain, fused)
    assert fused[2].logits is None
    kernels = sum(type(step).__name__.startswith("Liger") for step in backward_steps(fused[2].loss_sum))
    if family == "glm":
        assert said == (
            "liger-kernel: the answer's loss replaced; it knows no model of type 'glm', whose layers stay PyTorch's"
        )
        assert kernels == 1
    else:
        assert said == "liger-kernel: rope, rms_norm, swiglu, the answer's loss replaced"
        # Two layers of two norms, rope and an MLP each, the last norm, and the loss.
        assert kernels == 2 * 4 + 1 + 1


def backward_steps(loss: Tensor) -> set[Any]:
    """Every node of a loss's graph."""
    found: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in found:
            found.add(step)
            waiting += [before for before, _ in step.next_functions]
    return found


@needs_liger
def test_parts_can_be_left_out(arguments: Arguments, backbones: dict[str, Path]) -> None:
    trainer = built(arguments, backbones, "llama")
    inputs = first_batch(trainer)
    plain = loss_and_gradients(trainer.model, inputs)
    chosen = {"rope": False, "fused_linear_cross_entropy": False}
    assert use_liger(trainer.model, chosen) == "liger-kernel: rms_norm, swiglu replaced"
    fused = loss_and_gradients(trainer.model, inputs)
    assert_alike(plain, fused)
    assert fused[2].logits is not None


@needs_liger
def test_an_activation_that_is_not_silu_keeps_its_mlp(arguments: Arguments, backbones: dict[str, Path]) -> None:
    trainer = built(arguments, backbones, "llama")
    core: Any = conditional_generation_of(trainer.model)
    core.model.language_model.config.hidden_act = "gelu"
    assert use_liger(trainer.model) == "liger-kernel: rope, rms_norm, the answer's loss replaced"


@needs_liger
def test_a_training_ends_with_the_same_weights_and_says_once_what_ran(
    arguments: Arguments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from conftest import adapter_weights

    from llm_mer.checkpoints.run_manifest import RunManifest

    changes = {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "packing_length": 120}
    plain = adapter_weights(finetune(arguments(output=tmp_path / "plain", **changes)))
    fused_run = finetune(arguments(output=tmp_path / "fused", use_liger_kernel="true", **changes))
    fused = adapter_weights(fused_run)
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-3, atol=1e-4)
    assert [r.message for r in caplog.records if "liger" in r.message] == [
        "liger-kernel: rope, rms_norm, swiglu, the answer's loss replaced"
    ]
    manifest = RunManifest.load(fused_run)
    assert manifest.options["training"]["use_liger_kernel"] is True
    assert "liger-kernel" in manifest.versions


@pytest.mark.usefixtures("no_backbone")
def test_a_missing_liger_kernel_is_one_line_that_says_how_to_install_it(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = "liger_kernel"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else find(name, *rest))
    with pytest.raises(UserError, match=r"liger-kernel is not installed: pip install 'llm-mer\[liger\]'"):
        build_trainer(parse_arguments(arguments(use_liger_kernel="true")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cpu"}, "need a GPU, and this run is on the CPU"),
        ({"backbone": "none"}, "backbone: none has none"),
        ({"sharded": True}, "ZeRO-3 and FSDP shard; use ZeRO-2"),
        ({"chosen": {"cross_entropy": True}}, "'cross_entropy': True; it may switch off rope, rms_norm"),
        ({"chosen": {"rope": "no"}}, "'rope': 'no'; .* true or false"),
    ],
)
def test_where_the_kernels_cannot_work_they_are_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: name)
    right: dict[str, Any] = {"device": "cuda", "backbone": "x", "sharded": False, "chosen": {"rope": False}}
    check_liger(**right)
    with pytest.raises(UserError, match=message):
        check_liger(**{**right, **changes})
