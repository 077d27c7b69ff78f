"""The type of the numbers a language model computes with: one option of every command that loads a checkpoint to answer.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from llm_mer.errors import UserError

if TYPE_CHECKING:
    import torch

    from llm_mer.checkpoints.description import BackboneReference

AUTO = "auto"
PRECISIONS: tuple[str, ...] = (AUTO, "float32", "bfloat16", "float16")


def precision_option() -> str:
    """The field ``dtype`` of a command's options."""
    found: str = field(
        default=AUTO,
        metadata={
            "help": "what the language model computes with; auto is float32 on a CPU, else the type it was trained with",
            "choices": list(PRECISIONS),
        },
    )
    return found


def resolve_precision(dtype: str | torch.dtype, reference: BackboneReference | None, device: str, checkpoint: str) -> str:
    """``float32``, ``bfloat16`` or ``float16`` for ``dtype``, which may be ``auto``.

    Args:
        reference: of the checkpoint's backbone; None where an adapter alone answers, always in float32.

    Raises:
        UserError: another type, or half precision of an adapter alone, which it would have no effect on.
    """
    wanted = str(dtype).removeprefix("torch.")
    if wanted not in PRECISIONS:
        raise UserError(f"dtype: {wanted!r} is not one of {', '.join(PRECISIONS)}")
    if reference is None:
        if wanted not in (AUTO, "float32"):
            raise UserError(
                f"dtype: {wanted} would have no effect: {checkpoint} holds an adapter alone, which computes in float32; "
                "leave it out"
            )
        return "float32"
    if wanted == AUTO:
        return "float32" if device == "cpu" else reference.dtype
    return wanted
