"""DeepSpeed: its optimizer's float32 parameters, its process group, and ZeRO-3's bucket sizes.

``_hp_mapping``, by which DeepSpeed marks a parameter with a float32 copy in its optimizer, is not a public interface: seen
in DeepSpeed 0.19, checked against the installed version by ``tests/distributed/test_private_parts.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_mer.distributed.sharded_parameters import full_numel


@contextmanager
def gathered_master_parameters(module: nn.Module) -> Iterator[None]:
    """A context in which the parameters of ``module`` are the optimizer's master weights, in full; changes in place persist.

    Plain and data-parallel training update the parameters themselves: nothing to do. DeepSpeed's ZeRO updates its own
    float32 copies, sharded over ranks, and overwrites the model's parameters with them at every step, so a change to the
    model's parameters alone would be lost one step later. Collective: every rank calls this and makes the same changes.
    Stage 3, which shards the model's parameters too, is refused by :func:`check_sharding`.
    """
    sharded = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if hasattr(parameter, "_hp_mapping")  # set by DeepSpeed, on every rank, on a parameter with such a copy
    ]
    if not sharded:
        yield
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    gathered = [safe_get_full_fp32_param(parameter).detach().clone() for _, _, parameter in sharded]
    previous = [value.clone() for value in gathered]
    # Swap the parameter object rather than its data: a change of dtype would drop DeepSpeed's gradient hooks.
    for (owner, name, _), value in zip(sharded, gathered, strict=True):
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)
    try:
        yield
    finally:
        for owner, name, parameter in sharded:
            owner._parameters[name] = parameter
    for (_, _, parameter), old, new in zip(sharded, previous, gathered, strict=True):
        if torch.equal(old, new):
            continue
        safe_set_full_fp32_param(parameter, new)
        with torch.no_grad():
            parameter.copy_(new)  # the copy that the model computes with, and saves, until the next step


def init_deepspeed_process_group(world_size: int) -> None:
    """Initialise DeepSpeed on the existing process group: on a CPU the trainer does not, and ZeRO-3 shards while loading."""
    import deepspeed

    if world_size > 1 and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def fill_zero3_auto_sizes(model: nn.Module, adapter: nn.Module, config: dict[str, Any]) -> None:
    """Fill in ZeRO-3's ``auto`` sizes for an adapter whose executed parts may differ between processes.

    Which of the adapter's parts run depends on the batch, and therefore on the process. If the parts were sharded, some
    processes would gather a part that others never request, and wait forever. The same holds for gradients, which are
    reduced in buckets in the order in which they are computed. Therefore the adapter's parameters are not sharded, all
    gradients go into one bucket (which sorts them), and :meth:`MerTraining.compute_loss` gives every parameter a gradient.
    """
    sizes = {
        "stage3_param_persistence_threshold": max(full_numel(p) for p in adapter.parameters()),
        "reduce_bucket_size": sum(full_numel(p) for p in model.parameters() if p.requires_grad),
        "stage3_prefetch_bucket_size": 0,  # prefetching relies on the execution order of the previous step
    }
    zero = config["zero_optimization"]
    for name, size in sizes.items():
        if zero.get(name, "auto") == "auto":
            zero[name] = size
