"""transformers' ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` for checkpoints of this package."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.precision import AUTO
from llm_mer.errors import UserError
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.modeling_mer import MerForConditionalGeneration

GIVEN_BY_AUTO_MODEL = ("config", "trust_remote_code", "adapter_kwargs", "_from_auto", "token")
"""What ``AutoModel.from_pretrained`` of transformers 5.23 adds by itself, or what the hub library finds by itself."""


class CheckpointModel(MerForConditionalGeneration):
    """What the auto classes build: a new model from a configuration, or a trained one from a checkpoint."""

    config_class = MerConfig

    @classmethod
    def from_pretrained(  # type: ignore[override]  # a checkpoint without a backbone has no language model's type
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | None = None,
        **options: Any,
    ) -> nn.Module:
        """The model of a checkpoint as :func:`load_checkpoint` reads it: wrapped by PEFT where LoRA is apart.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            revision: of a hub name; of a folder not read, as transformers gives one always.
            dtype: of the backbone. device_map: one device; the CPU by default, as in transformers.

        Raises:
            UserError: as :func:`load_checkpoint`; an option that is none of these.
        """
        unknown = sorted(set(options) - set(GIVEN_BY_AUTO_MODEL))
        if unknown:
            raise UserError(f"{', '.join(unknown)}: a checkpoint of llm_mer takes revision, dtype and device_map alone")
        if isinstance(device_map, dict) or device_map == "auto":
            raise UserError(f"device_map: {device_map!r}: name one device, e.g. cpu or cuda:0")
        from llm_mer.checkpoints.hub import is_hub_name

        name = str(pretrained_model_name_or_path)
        return load_checkpoint(
            name,
            revision=revision if is_hub_name(name) else None,
            dtype=AUTO if dtype is None else dtype,
            device="cpu" if device_map is None else str(device_map),
        ).model


def register_auto_classes() -> None:
    """Make ``AutoConfig.from_pretrained(checkpoint)`` and ``AutoModel.from_pretrained(checkpoint)`` know checkpoints.

    Nothing is registered by importing this package. Calling it again changes nothing.
    """
    AutoConfig.register(MerConfig.model_type, MerConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM):
        auto_class.register(MerConfig, CheckpointModel, exist_ok=True)
