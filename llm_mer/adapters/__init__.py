"""Fusion adapters: one file each, one line each in :data:`ADAPTERS`."""

from __future__ import annotations

from llm_mer.adapters.base import AdapterConfig, FusionAdapter
from llm_mer.adapters.egmf import EGMFAdapter
from llm_mer.adapters.gated_projector import GatedProjectorAdapter
from llm_mer.adapters.gated_xlstm import GatedXLSTMAdapter
from llm_mer.adapters.gia_mic import GIAMICAdapter
from llm_mer.adapters.lpgnet import LPGNetAdapter
from llm_mer.adapters.lsgmer import LSGMERAdapter

ADAPTERS: dict[str, type[FusionAdapter]] = {
    "egmf": EGMFAdapter,
    "lsgmer": LSGMERAdapter,
    "gia_mic": GIAMICAdapter,
    "lpgnet": LPGNetAdapter,
    "gated_xlstm": GatedXLSTMAdapter,
    "gated_projector": GatedProjectorAdapter,
}


def adapter_class(name: str) -> type[FusionAdapter]:
    """The adapter of this name. Raises ``ValueError`` naming the choices."""
    if name not in ADAPTERS:
        raise ValueError(f"unknown adapter {name!r}; choose one of {', '.join(ADAPTERS)}")
    return ADAPTERS[name]


def build_adapter(name: str, config: AdapterConfig) -> FusionAdapter:
    """Build the named adapter from its own configuration class."""
    cls = adapter_class(name)
    if not isinstance(config, cls.config_class):
        raise TypeError(f"adapter {name} needs a {cls.config_class.__name__}, got {type(config).__name__}")
    return cls(config)
