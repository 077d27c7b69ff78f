"""Fusion adapters: one file each, one line each in :data:`~llm_mer.adapters.registry.BUILT_IN`.

Importing this package imports no adapter and not torch; :func:`adapter_class` imports the one that is asked for.
"""

from llm_mer.adapters.registry import (
    BUILT_IN,
    DEFAULT_ADAPTER,
    AdapterReference,
    adapter_class,
    adapter_names,
    build_adapter,
    check_reference,
    reference_of,
    register_adapter,
    use_adapter,
)

__all__ = [
    "BUILT_IN",
    "DEFAULT_ADAPTER",
    "AdapterReference",
    "adapter_class",
    "adapter_names",
    "build_adapter",
    "check_reference",
    "reference_of",
    "register_adapter",
    "use_adapter",
]
