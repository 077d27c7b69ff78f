"""Kernels of a hub, which are compiled code: none is loaded because a model's configuration names it."""

from __future__ import annotations

from typing import Any

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Entries of a configuration by which transformers (5.23) takes a kernel; the name of one holds ``/``."""


def check_hub_kernels(config: Any, where: str) -> None:
    """Raises :class:`UserError` where a configuration, as it stands in its file, names kernels of a hub."""
    waiting = [config]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting += entry
        if not isinstance(entry, dict):
            continue
        for name, value in entry.items():
            kind = str(name).removeprefix("_").removesuffix("_internal")
            named = value.values() if isinstance(value, dict) else [value]
            from_hub = kind in IMPLEMENTATIONS and any("/" in str(part) for part in named)
            if from_hub or (kind == "use_kernels" and value):
                raise UserError(
                    f"{where}: its configuration asks for kernels of a hub ({name}: {quote(value)}), which are "
                    "compiled code of others and are not loaded; take the entry out, and say attn_implementation: sdpa"
                )
            waiting.append(value)
