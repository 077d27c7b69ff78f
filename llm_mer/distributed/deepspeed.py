"""What this project does to DeepSpeed: whole parameters in place of ZeRO's copies, process group, ZeRO-3's sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_mer.distributed.sharded_parameters import size_of


@contextmanager
def optimiser_parameters(module: nn.Module) -> Iterator[None]:
    """Inside, the parameters of ``module`` are what the optimiser steps, whole; what is changed in place stays changed.

    Plain and data-parallel training step the parameters themselves: nothing to do. DeepSpeed's ZeRO steps float32 copies
    of its own, sharded over ranks, and writes them over the model's parameters at every step, so a change to the latter
    alone would be gone one step later. Collective: every rank comes here, and all make the same changes. Stage 3, which
    shards the model's parameters too, is refused by :func:`check_sharding`.
    """
    sharded = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if hasattr(parameter, "_hp_mapping")  # DeepSpeed's mark, on every rank, of a parameter with such a copy
    ]
    if not sharded:
        yield
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    whole = [safe_get_full_fp32_param(parameter).detach().clone() for _, _, parameter in sharded]
    before = [value.clone() for value in whole]
    # Another parameter in its place, not other data in it: a change of dtype would cost it DeepSpeed's gradient hooks.
    for (owner, name, _), value in zip(sharded, whole, strict=True):
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)
    try:
        yield
    finally:
        for owner, name, parameter in sharded:
            owner._parameters[name] = parameter
    for (_, _, parameter), old, new in zip(sharded, before, whole, strict=True):
        if torch.equal(old, new):
            continue
        safe_set_full_fp32_param(parameter, new)
        with torch.no_grad():
            parameter.copy_(new)  # what the model computes with, and saves, until the next step


def init_deepspeed_process_group(world_size: int) -> None:
    """Hand the process group that exists to DeepSpeed: on a CPU the trainer does not, and ZeRO-3 shards while loading."""
    import deepspeed

    if world_size > 1 and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def fill_zero3_sizes(model: nn.Module, adapter: nn.Module, config: dict[str, Any]) -> None:
    """Fill in ZeRO-3's ``auto`` sizes: the backbone is sharded, and the adapter may run other parts on each process.

    Which of the adapter's parts run depends on the batch, and so on the process. Sharded parts would be gathered by some and
    waited for forever; so would gradients, which are reduced in buckets as they come. The adapter's parameters stay
    whole, all gradients go into one bucket (which sorts them), and :meth:`MerTraining.compute_loss` gives each one.
    """
    sizes = {
        "stage3_param_persistence_threshold": max(size_of(p) for p in adapter.parameters()),
        "reduce_bucket_size": sum(size_of(p) for p in model.parameters() if p.requires_grad),
        "stage3_prefetch_bucket_size": 0,  # what to fetch ahead is guessed from the order of the step before
    }
    zero = config["zero_optimization"]
    for name, size in sizes.items():
        if zero.get(name, "auto") == "auto":
            zero[name] = size
