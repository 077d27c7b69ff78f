"""Parameters of which each process holds a part: DeepSpeed's ZeRO-3."""

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
    """Keep a module's parameters whole on every process from now on under ZeRO-3. Collective; nothing elsewhere.

    DeepSpeed gathers its persistent parameters after every step; before the first, and in it, it releases them like others.
    """
    persistent = getattr(getattr(engine, "optimizer", None), "persistent_parameters", None)
    if not persistent:
        return
    persistent[0].all_gather(persistent)
    parameter: Any
    for parameter in module.parameters():
        sharded: Any = parameter  # DeepSpeed's own mark on it
        sharded.is_external_param = True  # not released with the module that used it
