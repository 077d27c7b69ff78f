"""Small adapters and small batches for the tests of every adapter. Padded and missing steps carry NaN throughout."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llm_mer.adapters import adapter_class, adapter_names, build_adapter
from llm_mer.adapters.base import (
    IGNORE_CLASS,
    MODALITIES,
    ConversationContext,
    FusionAdapter,
    FusionInputs,
    FusionOutput,
    FusionTargets,
    ModalitySequence,
)

FEATURE_SIZES = {"text": 5, "audio": 4, "vision": 3}
CONTEXT_SIZES = {"text": 8, "audio": 8, "vision": 8}
LENGTHS = {"text": (4, 2, 3, 0), "audio": (3, 5, 0, 1), "vision": (2, 0, 4, 2)}  # 0 where the sample lacks the modality
WINDOWS = (4, 2, 3, 1)  # utterances of each sample's context window, the target last
BATCH = 4
BACKBONE_SIZE = 12
CLASSES = 4
SCORE_RANGE = (-3.0, 3.0)
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"num_classes": CLASSES},
    "regression": {"score_range": SCORE_RANGE},
    "both": {"num_classes": CLASSES, "score_range": SCORE_RANGE},
}


@dataclass(frozen=True)
class Case:
    """An adapter, its options, and what it learns."""

    adapter: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.adapter, *(f"{name}={value}" for name, value in self.options.items()), self.task])

    @property
    def uses_context(self) -> bool:
        return adapter_class(self.adapter).uses_context


CASES = [
    Case(name, task, options)
    for name in adapter_names()
    for options in adapter_class(name).example_options
    for task in TASKS
]
"""Every registered adapter, in each of its own example configurations, for each kind of task."""


def build(case: Case, double: bool = False, train: bool = False, seed: int = 0, **options: Any) -> FusionAdapter:
    """A small adapter without dropout; ``options`` override the case's."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_size": 8,
        "num_heads": 2,
        "num_pseudo_tokens": 3,
        "dropout": 0.0,
        "feature_sizes": FEATURE_SIZES,
        "context_sizes": CONTEXT_SIZES,
        "backbone_size": BACKBONE_SIZE,
        "auxiliary_head": True,
        **TASKS[case.task],
        **case.options,
        **options,
    }
    adapter = build_adapter(case.adapter, adapter_class(case.adapter).config_class(**settings))
    return (adapter.double() if double else adapter).train(train)


def make_targets(task: str) -> FusionTargets:
    """As the collator writes them: both tensors, unknown where the sample has none."""
    classes = [2, IGNORE_CLASS, 0, 3] if task != "regression" else [IGNORE_CLASS] * BATCH
    scores = [math.nan, 1.0, -3.0, 0.5] if task != "classification" else [math.nan] * BATCH
    return FusionTargets(torch.tensor(classes), torch.tensor(scores))


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float32, targets: bool = False, complete: bool = False
) -> FusionInputs:
    """Four samples; one has all modalities, each modality is missing once unless ``complete``."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = FusionInputs(targets=make_targets(case.task) if targets else None)
    present = {}
    for modality, lengths in LENGTHS.items():
        length = torch.tensor(lengths).clamp(min=int(complete))
        features, mask = randn(BATCH, 7, FEATURE_SIZES[modality]), torch.arange(7) < length[:, None]
        features[~mask] = math.nan
        setattr(inputs, modality, ModalitySequence(features, mask))
        present[modality] = mask.any(dim=1)
    if case.uses_context:
        window, positions = torch.tensor(WINDOWS), torch.arange(5)
        mask = positions < window[:, None]
        speakers = torch.where(mask, (window[:, None] - 1 - positions).clamp(min=0) % 2, -1)
        inputs.context = ConversationContext(mask, speakers, window - 1)
        for modality in MODALITIES:
            known = mask & (torch.rand(BATCH, 5, generator=generator) < 0.8)
            known[torch.arange(BATCH), window - 1] = present[modality]
            vectors = randn(BATCH, 5, CONTEXT_SIZES[modality])
            vectors[~known] = math.nan
            setattr(inputs.context, modality, vectors)
            setattr(inputs.context, f"{modality}_mask", known)
    return inputs


def map_tensors(inputs: FusionInputs, change: Any) -> FusionInputs:
    """The same inputs with ``change(name, tensor)`` applied to every tensor; names as ``audio.mask``, ``context.text``."""
    changed = replace(inputs)
    for part in (*MODALITIES, "context", "targets"):
        value = getattr(inputs, part)
        if value is not None:
            tensors = {k: change(f"{part}.{k}", v) for k, v in vars(value).items() if v is not None}
            setattr(changed, part, replace(value, **tensors))
    return changed


def rows(inputs: FusionInputs, index: list[int]) -> FusionInputs:
    """Some samples of a batch."""
    return map_tensors(inputs, lambda _, tensor: tensor[index])


def hide(inputs: FusionInputs, modalities: Iterable[str], index: list[int] | None = None) -> FusionInputs:
    """Samples (all by default) lose modalities: their masks are cleared, their values stay. History loses them too."""
    names = {f"{m}.mask" for m in modalities} | {f"context.{m}_mask" for m in modalities}

    def clear(name: str, tensor: Tensor) -> Tensor:
        if name in names:
            tensor = tensor.clone()
            tensor[slice(None) if index is None else index] = False
        return tensor

    return map_tensors(inputs, clear)


def drop(inputs: FusionInputs, modalities: Iterable[str]) -> FusionInputs:
    """The whole batch never had these modalities: None in place of tensors."""
    dropped = replace(inputs, **dict.fromkeys(modalities))
    if inputs.context is not None:
        names = [name for m in modalities for name in (m, f"{m}_mask")]
        nothing: dict[str, Any] = dict.fromkeys(names)
        dropped.context = replace(inputs.context, **nothing)
    return dropped


def fill(inputs: FusionInputs, value: float, modalities: Iterable[str] = MODALITIES) -> FusionInputs:
    """Every value that a mask hides becomes ``value``."""
    filled = replace(inputs)
    for modality in modalities:
        sequence = inputs.sequence(modality)
        if sequence is not None:
            values = sequence.features.masked_fill(~sequence.mask.unsqueeze(-1), value)
            setattr(filled, modality, ModalitySequence(values, sequence.mask))
        if filled.context is not None and (vectors := getattr(filled.context, modality)) is not None:
            known = getattr(filled.context, f"{modality}_mask")
            filled.context = replace(filled.context, **{modality: vectors.masked_fill(~known.unsqueeze(-1), value)})
    return filled


def pad(inputs: FusionInputs, steps: int, utterances: int = 0, front: bool = False) -> FusionInputs:
    """More padding, NaN in it: ``steps`` per sequence (in front if asked) and ``utterances`` behind each window."""

    def longer(name: str, tensor: Tensor) -> Tensor:
        part, _, entry = name.partition(".")
        if part == "targets" or entry == "target":
            return tensor
        count, fill_value = (utterances, -1) if part == "context" else (steps, 0)
        value: float | bool = False if tensor.dtype == torch.bool else math.nan if tensor.is_floating_point() else fill_value
        padding = torch.full((tensor.shape[0], count, *tensor.shape[2:]), value, dtype=tensor.dtype)
        return torch.cat([padding, tensor] if front and part != "context" else [tensor, padding], dim=1)

    return map_tensors(inputs, longer)


def per_sample(output: FusionOutput) -> dict[str, Tensor]:
    """Everything in an output that has one row per sample."""
    named = {"pseudo_tokens": output.pseudo_tokens, "logits": output.logits, "scores": output.scores}
    named |= {"features": output.features, **{f"diagnostics.{k}": v for k, v in output.diagnostics.items()}}
    return {name: value for name, value in named.items() if value is not None}


def weighted_loss(adapter: FusionAdapter, output: FusionOutput) -> Tensor:
    """The adapter's own losses with its default weights."""
    return torch.stack([adapter.default_loss_weights[name] * loss for name, loss in output.aux_losses.items()]).sum()
