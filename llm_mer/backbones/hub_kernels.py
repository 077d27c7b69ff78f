"""Kernels from a hub are compiled code of others: a configuration that asks for them is refused."""

from __future__ import annotations

from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

IMPLEMENTATION_FIELDS = ("attn_implementation", "experts_implementation")
"""Configuration fields by which transformers (5.23) chooses a kernel; a hub kernel's name contains ``/``."""


def check_hub_kernels(config: Any, where: str) -> None:
    """Check that a configuration, as read from its file, asks for no kernel from a hub. Raises :class:`UserError`."""
    pending = [config]
    while pending:
        entry = pending.pop()
        if isinstance(entry, list):
            pending += entry
        if not isinstance(entry, dict):
            continue
        for name, value in entry.items():
            kind = str(name).removeprefix("_").removesuffix("_internal")
            requested = value.values() if isinstance(value, dict) else [value]
            from_hub = kind in IMPLEMENTATION_FIELDS and any("/" in str(part) for part in requested)
            if from_hub or (kind == "use_kernels" and value):
                raise UserError(
                    f"{where}: its configuration asks for kernels of a hub ({name}: {quote(value)}), which are "
                    "compiled code of others and are not loaded; take the entry out, and say attn_implementation: sdpa"
                )
            pending.append(value)
