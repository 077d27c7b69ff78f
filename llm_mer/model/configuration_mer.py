"""What the model is built from: the configuration of transformers' triple."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from llm_mer.adapters import DEFAULT_ADAPTER, adapter_class
from llm_mer.adapters.base import AdapterConfig
from llm_mer.backbones.attention import attention_implementation
from llm_mer.backbones.language_lora import SHARED
from llm_mer.errors import UserError


def build_adapter_config(adapter: str, options: dict[str, Any]) -> AdapterConfig:
    """The adapter's typed configuration from plain options; an unknown option is an error that lists the known ones."""
    config_class = adapter_class(adapter).config_class
    known = {entry.name for entry in dataclasses.fields(config_class)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"adapter {adapter!r} has no option {unknown}; it knows {sorted(known)}")
    options = dict(options)
    if options.get("score_range") is not None:
        low, high = options["score_range"]
        options["score_range"] = (float(low), float(high))
    return config_class(**options)


class MerConfig(PreTrainedConfig):
    """What the model is built from: the backbone's configuration, the adapter's name and options.

    Attributes:
        text_config: the backbone's own configuration; None for an adapter alone.
        adapter: a name that :func:`llm_mer.adapters.adapter_class` knows.
        adapter_config: its options and derived sizes as plain values.
        text_source: ``backbone`` (transcript tokens looked up in the embedding table) or ``features``.
        lora_sharing: which ranks of LoRA an utterance's language uses, see :mod:`llm_mer.backbones.language_lora`.
        read_out: ``{task: outputs}`` of :class:`llm_mer.model.read_out.ReadOut`; None without one.
    """

    model_type = "llm_mer"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    adapter: str = DEFAULT_ADAPTER
    adapter_config: dict | None = None
    text_source: str = "backbone"
    lora_sharing: str = SHARED
    read_out: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            entry = dict(self.text_config)
            self.text_config = AutoConfig.for_model(entry.pop("model_type"), **entry)
        if isinstance(self.text_config, PreTrainedConfig):
            # transformers pushes the composite's choice down, and an unset one would undo the loaded backbone's.
            kwargs.setdefault("attn_implementation", attention_implementation(self.text_config))
        super().__post_init__(**kwargs)
        if self.text_config is not None and getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True

    def build_adapter_config(self) -> AdapterConfig:
        """The adapter's typed configuration."""
        return build_adapter_config(self.adapter, self.adapter_config or {})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's configuration, or this one for an adapter alone."""
        return self.text_config if isinstance(self.text_config, PreTrainedConfig) else self
