"""Whether an optimiser and a schedule of transformers can be had as asked for, told before anything is read or loaded."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.training_args import OptimizerNames

from llm_mer.errors import UserError, first_line

BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
PACKAGES: dict[str, tuple[str, str]] = {
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch-xla"),
    "adamw_torch_npu": ("torch_npu", "torch-npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb", "paged", "ademamix", "lion", "rmsprop_bnb"), BITSANDBYTES),
}
"""By the beginning of an optimiser's name: the module that transformers 5.23 imports for it, and the package on PyPI."""
NEEDS_MODEL = ("galore", "apollo", "lomo", "adalomo")
"""Optimisers that transformers builds for a given model alone."""


def check_optimizer(name: str) -> None:
    """Refuse an optimiser that transformers does not know, or whose package is not installed.

    Raises:
        UserError: naming the option, its value, and the package.
    """
    known = [str(entry.value) for entry in OptimizerNames]
    if name not in known:
        own = [other for other in known if not other.startswith(tuple(PACKAGES))]
        raise UserError(f"optim: {name!r} is no optimiser of transformers; {', '.join(own)} need no further package")
    for beginning, (module, package) in PACKAGES.items():
        if name.startswith(beginning) and importlib.util.find_spec(module) is None:
            raise UserError(
                f"optim: {name} needs the package {package}, which is not installed: pip install {package}, or leave optim "
                "out for PyTorch's AdamW"
            )


def check_optimizer_arguments(arguments: Any) -> None:
    """Refuse ``optim_args`` and ``optim_target_modules`` that the optimiser cannot be built with, or does not read.

    Raises:
        UserError: naming the options.
    """
    name = str(arguments.optim.value)
    if name.startswith(NEEDS_MODEL):
        return
    if arguments.optim_target_modules:
        raise UserError(
            f"optim_target_modules: {arguments.optim_target_modules!r} would have no effect: optim {name} trains every "
            "trainable weight in the same way; leave it out"
        )
    built = _built_with(arguments, arguments.optim_args)
    parts = (arguments.optim_args or "").replace(" ", "").split(",")
    for place, part in enumerate(parts):
        rest = ",".join(parts[:place] + parts[place + 1 :])
        if part and _built_with(arguments, rest or None) == built:
            raise UserError(f"optim_args: {part!r} changes nothing of optim {name}; leave it out")


def _built_with(arguments: Any, optim_args: str | None) -> Any:
    """The optimiser's class and arguments with this text as ``optim_args``."""
    changed = copy.copy(arguments)
    changed.optim_args = optim_args
    try:
        return Trainer.get_optimizer_cls_and_kwargs(changed)
    except (ImportError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"optim: {arguments.optim.value}, optim_args: {optim_args}: {first_line(error)}") from None


def check_schedule(arguments: Any) -> None:
    """Refuse a schedule that cannot be built with ``lr_scheduler_kwargs``, or lacks one of them.

    Raises:
        UserError: naming both options.
    """
    name, options = str(arguments.lr_scheduler_type.value), arguments.lr_scheduler_kwargs
    steps = arguments.max_steps if arguments.max_steps > 0 else 1000  # by epochs, nobody knows yet, and it does not matter
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(options or {}),
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"lr_scheduler_type: {name}, lr_scheduler_kwargs: {options or 'none'}: {first_line(error)}"
        ) from None


CHECKPOINTING_OPTIONS = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
"""What :func:`torch.utils.checkpoint.checkpoint` takes beside a function and its inputs (torch 2.13)."""


def check_checkpointing_options(options: Any) -> None:
    """Refuse ``gradient_checkpointing_kwargs`` that torch does not know. Raises :class:`UserError` naming them."""
    if isinstance(options, dict) and (unknown := sorted(set(options) - set(CHECKPOINTING_OPTIONS))):
        raise UserError(
            f"gradient_checkpointing_kwargs: {unknown[0]!r} is no option of it; choose from "
            + ", ".join(CHECKPOINTING_OPTIONS)
        )
