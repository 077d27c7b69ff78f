"""Trainers in float64, in which two ways to the same loss can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer


def build_double_trainer(command_line: list[str]) -> Any:
    """A trainer whose LoRA is no longer at its start, where it would be zero, in float64."""
    trainer = build_trainer(parse_arguments(command_line))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trainer.model.double().eval()
    return trainer


def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch for it."""
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
