"""Parameters, gradients and optimizer states of which each process holds a part: DeepSpeed's ZeRO.

DeepSpeed marks a parameter that ZeRO-3 shards with ``ds_id`` and its full size with ``ds_numel``; FSDP2's are DTensors with
a ``device_mesh``. These, ``persistent_parameters``, ``is_external_param``, ``coalesce_grad_reduction`` and accelerate's
``deepspeed_engine_wrapped`` are not public interfaces: seen in DeepSpeed 0.19 and accelerate 1.15, checked against the
installed versions by ``tests/distributed/test_private_parts.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn


def gathered_parameters(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """A context in which every process holds sharded parameters in full, to read them.

    Collective if any parameter is sharded; otherwise does nothing.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded)
    return context


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's forward pass is collective: it gathers parameters held by other processes."""
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in module.parameters())


def full_numel(parameter: nn.Parameter) -> int:
    """Number of elements of the parameter on all processes together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def keep_parameters_gathered(engine: Any, module: nn.Module) -> None:
    """Keep a module's parameters, and DeepSpeed's persistent ones, in full on every process under ZeRO-3. Collective.

    Does nothing without ZeRO-3. DeepSpeed gathers its persistent parameters after every step, but before and during the
    first step it releases them like all others. PEFT then finds a LoRA matrix released in the second backward pass of
    that step, and DeepSpeed stops because the parameters are not used in the order of the first pass ("tracing error").
    """
    persistent = getattr(getattr(engine, "optimizer", None), "persistent_parameters", None)
    if not persistent:
        return
    persistent[0].all_gather(persistent)
    parameter: Any
    for parameter in (*persistent, *module.parameters()):
        sharded: Any = parameter  # has DeepSpeed's own attributes
        sharded.is_external_param = True  # keeps it from being released with the module that used it


class OrderedGradientReduction:
    """accelerate's wrapper of a ZeRO-2 engine, with gradients reduced in the order of the parameters.

    ZeRO-2 copies gradients into its buffer in the order in which they are computed, and adds the processes' buffers up
    element by element (DeepSpeed issue 2343). In an adapter that order may depend on the batch: an LSTM on a CPU computes
    its weights' gradients in an order that depends on the lengths in the batch, and the sums then mix different parameters.
    So gradients (of LoRA and the adapter only) stay with their parameters until the last backward pass of a step.
    """

    def __init__(self, wrapper: Any) -> None:
        self.wrapper, self.engine = wrapper, wrapper.engine
        self._reduction: AbstractContextManager[Any] | None = None

    def backward(self, loss: Any, sync_gradients: bool = True, **kwargs: Any) -> None:
        """A backward pass; with ``sync_gradients`` the reduction and the optimizer's step follow."""
        if self._reduction is None:
            self._reduction = self.engine.coalesce_grad_reduction()
            self._reduction.__enter__()
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            reduction, self._reduction = self._reduction, None
            reduction.__exit__(None, None, None)
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)  # the reduction context reset it
            self.engine.step()

    def get_global_grad_norm(self) -> Any:
        """Norm of the gradient over all processes, before clipping."""
        return self.wrapper.get_global_grad_norm()


def reduce_gradients_in_parameter_order(accelerator: Any) -> None:
    """Make ZeRO-2 reduce gradients in the order of the parameters, the same on every process; otherwise do nothing.

    Every parameter must get a gradient on every process.
    """
    wrapper = getattr(accelerator, "deepspeed_engine_wrapped", None)
    if wrapper is None or isinstance(wrapper, OrderedGradientReduction):
        return
    if wrapper.engine.zero_optimization_stage() == 2:
        accelerator.deepspeed_engine_wrapped = OrderedGradientReduction(wrapper)
