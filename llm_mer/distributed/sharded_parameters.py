"""Parameters, gradients and optimiser states of which each process holds a part: DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Inside, sharded parameters are whole on every process, to be read. Collective; nothing where none is sharded."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded)
    return context


def is_sharded(module: nn.Module) -> bool:
    """Whether a forward of the module is collective: it gathers parameters that lie on other processes."""
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in module.parameters())


def size_of(parameter: nn.Parameter) -> int:
    """Number of elements of the whole parameter."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def keep_whole(engine: Any, module: nn.Module) -> None:
    """Keep a module's parameters, and all that DeepSpeed calls persistent, whole on every process under ZeRO-3. Collective.

    Does nothing elsewhere. DeepSpeed gathers its persistent parameters after every step; before the first, and in it, it
    releases them like others. PEFT then finds a LoRA matrix away in the second backward pass of that step, and DeepSpeed
    ends the run because the parameters are not used in the order of the first ("tracing error").
    """
    persistent = getattr(getattr(engine, "optimizer", None), "persistent_parameters", None)
    if not persistent:
        return
    persistent[0].all_gather(persistent)
    parameter: Any
    for parameter in (*persistent, *module.parameters()):
        sharded: Any = parameter  # DeepSpeed's own mark on it
        sharded.is_external_param = True  # not released with the module that used it


class OrderedReduction:
    """accelerate's wrapper of a ZeRO-2 engine, but gradients are reduced in the order of the parameters.

    ZeRO-2 puts gradients into its buffer as they come and adds the processes' buffers up place by place (DeepSpeed issue
    2343). In an adapter the order may follow from the batch: an LSTM on a CPU has its weights' gradients ready in an order
    that the lengths in the batch decide, and the sum is then of different parameters. So gradients stay with the
    parameters, LoRA's and the adapter's only, until the last backward pass of a step.
    """

    def __init__(self, wrapper: Any) -> None:
        self.wrapper, self.engine = wrapper, wrapper.engine
        self._reduction: AbstractContextManager[Any] | None = None

    def backward(self, loss: Any, sync_gradients: bool = True, **kwargs: Any) -> None:
        """A backward pass, and with ``sync_gradients`` the reduction and the optimiser's step."""
        if self._reduction is None:
            self._reduction = self.engine.coalesce_grad_reduction()
            self._reduction.__enter__()
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            reduction, self._reduction = self._reduction, None
            reduction.__exit__(None, None, None)
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)  # the reduction put it back
            self.engine.step()

    def get_global_grad_norm(self) -> Any:
        """Norm of the gradient over all processes, before clipping."""
        return self.wrapper.get_global_grad_norm()


def reduce_in_one_order(accelerator: Any) -> None:
    """Have ZeRO-2 add up the gradients of the same parameters, whatever order each process has them in; nothing elsewhere.

    Every parameter must get a gradient on every process.
    """
    wrapper = getattr(accelerator, "deepspeed_engine_wrapped", None)
    if wrapper is not None and not isinstance(wrapper, OrderedReduction) and wrapper.engine.zero_optimization_stage() == 2:
        accelerator.deepspeed_engine_wrapped = OrderedReduction(wrapper)
