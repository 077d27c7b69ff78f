"""Fused kernels of liger-kernel for the backbone's layers and for the loss of the answer.

transformers' ``use_liger_kernel`` goes by the type of the outermost model, which is this project's own and unknown to
liger-kernel: it would do nothing and say nothing. Here the kernels go to the language model inside.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import MerForConditionalGeneration, conditional_generation_of

LAYERS: tuple[str, ...] = ("rope", "rms_norm", "swiglu", "geglu", "layer_norm")
"""Parts of a block that liger-kernel replaces, where it has them for a family."""
LOSS = "fused_linear_cross_entropy"
"""Its name for a loss that never holds the logits."""


def check_liger(device: str, backbone: str, sharded: bool, chosen: Mapping[str, Any] | None) -> None:
    """What can be told before a backbone is loaded.

    Args:
        device: type of the device trained on. backbone: its name, ``none`` for an adapter alone. sharded: whether parameters
            lie in parts on several processes. chosen: the option ``liger_kernel_config``.

    Raises:
        UserError: liger-kernel is missing, or cannot work here.
    """
    if backbone == "none":
        raise UserError("use_liger_kernel: its kernels are a language model's, and backbone: none has none; leave it out")
    for name, value in (chosen or {}).items():
        if name not in (*LAYERS, LOSS) or not isinstance(value, bool):
            raise UserError(
                f"liger_kernel_config: {name!r}: {value!r}; it may switch off {', '.join((*LAYERS, LOSS))}: true or false"
            )
    if sharded:
        raise UserError("use_liger_kernel: reads the output head's weights whole, which ZeRO-3 and FSDP shard; use ZeRO-2")
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError("use_liger_kernel: liger-kernel is not installed: pip install 'llm-mer[liger]'")
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError("use_liger_kernel: its kernels need a GPU, and this run is on the CPU; leave it out")


def use_liger(model: nn.Module, chosen: Mapping[str, bool] | None = None) -> str:
    """Give a model liger-kernel's layers and its answer loss; says in one line what was replaced and what was not.

    liger-kernel replaces normalisation and MLP in the instance, and rotary embeddings in transformers' module of the family,
    so for every model of it in this process. A family it does not know keeps its layers.

    Args:
        model: bare or PEFT-wrapped. chosen: parts to leave out (``{"rope": False}``); all that the family has when empty.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    core = conditional_generation_of(model)
    assert isinstance(core, MerForConditionalGeneration)
    body: Any = core.model.language_model
    chosen = dict(chosen or {})
    family = body.config.model_type
    replaced: list[str] = []
    if family in MODEL_TYPE_TO_APPLY_LIGER_FN:
        has = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[family]).parameters
        # What is off by default does not exist for this family: rope of GLM-4 raises.
        layers = {name: has[name].default and chosen.get(name, True) for name in LAYERS if name in has}
        if "swiglu" in layers and body.config.hidden_act not in ("silu", "swish"):
            layers["swiglu"] = False  # liger-kernel checks that in a layer's constructor alone
        _apply_liger_kernel_to_instance(model=body, cross_entropy=False, fused_linear_cross_entropy=False, **layers)
        replaced = [name for name, on in layers.items() if on]
    if chosen.get(LOSS, True):
        core.answer_loss = fused_answer_loss
        replaced.append("the answer's loss")
    message = f"liger-kernel: {', '.join(replaced) or 'nothing'} replaced"
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        message += f"; it knows no model of type {family!r}, whose layers stay PyTorch's"
    return message


def fused_answer_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """``Σ_n −log softmax(W hidden_n + b)[target_n]`` for ``hidden (N, H)``, a linear head ``(V, H)`` and ``targets (N,)``.

    The ``(N, V)`` logits are made and used up in pieces; the gradient is computed with the loss.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, head.weight, targets, head.bias, reduction="sum")
    return loss
