"""Whether an optimiser of transformers can be had here, told before anything is read or loaded."""

from __future__ import annotations

import importlib.util
from typing import Any

from transformers import Trainer
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
    """Refuse ``optim_args`` that the optimiser of :class:`transformers.TrainingArguments` cannot be built with.

    Raises:
        UserError: naming both options.
    """
    if str(arguments.optim.value).startswith(NEEDS_MODEL):
        return
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"optim: {arguments.optim.value}, optim_args: {arguments.optim_args}: {first_line(error)}") from None
