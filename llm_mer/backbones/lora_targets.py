"""Which layers of a backbone LoRA adapts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llm_mer.errors import UserError


def find_lora_targets(language_model: nn.Module, wanted: Sequence[str] | None = None) -> list[str]:
    """Names of the linear layers to adapt: those that are ``wanted``, else all in the decoder blocks, sorted.

    Raises:
        UserError: a wanted name that no linear layer has, or no blocks named ``layers`` where nothing is wanted.
    """
    linear = [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    ]
    found = sorted({name.rsplit(".", 1)[-1] for name in linear if ".layers." in f".{name}"})
    for target in wanted or ():
        if not any(name.endswith(f".{target}") for name in linear):
            raise UserError(f"lora_targets: the backbone has no linear layer {target!r}; its blocks have {', '.join(found)}")
    if not found and not wanted:
        raise UserError(f"{type(language_model).__name__} has no linear layers in blocks named 'layers'; set lora_targets")
    return list(wanted or found)
