"""The systems of a comparison: adapters and their ablations on backbones, before they are trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from llm_mer.adapters import adapter_class, adapter_names, use_adapter
from llm_mer.adapters.base import MODALITIES, MODALITY_ABLATIONS
from llm_mer.errors import UserError
from llm_mer.experiments.options import METRICS, CompareConfig

FULL = "full"
SINGLE_MODALITIES: dict[str, dict[str, bool]] = {
    f"{only} only": {f"use_{m}": False for m in MODALITIES if m != only} for only in MODALITIES
}
NO_LORA: dict[str, dict[str, Any]] = {"no LoRA": {"lora_r": 0}}
LORA_SHARINGS: dict[str, dict[str, Any]] = {
    "a LoRA per language": {"lora_sharing": "per_language"},
    "a shared LoRA and one per language": {"lora_sharing": "shared_and_per_language"},
    **NO_LORA,
}
TEXT_TWIN: dict[str, dict[str, str | list[str]]] = {"text-only twin": {"num_pseudo_tokens": "0"}}
"""The same training in which the language model gets the text alone."""
SHARED_OPTIONS: tuple[str, ...] = (
    *("data", "folds", "fold", "tasks", "train_split", "eval_split", "limit_train", "limit_eval"),
)
"""Data options that must be the same for every system, so that all are scored on the same questions."""


@dataclass
class System:
    """One system of the comparison, a row of its table."""

    adapter: str
    backbone: str
    ablation: str
    options: dict[str, str | list[str]]

    @property
    def name(self) -> str:
        """``egmf w/o E1 (tiny:llama)``."""
        return " ".join(
            [self.adapter, *([self.ablation] if self.ablation != FULL else []), f"({self.backbone or 'as in the YAML'})"]
        )

    def folder(self, seed: int, fold: str | None = None) -> str:
        """Path of the folder of its run with ``seed``, and on one of the folds where there are some."""
        own = f"{plain_name(f'{self.adapter}-{self.backbone}-{self.ablation}')}-{seed}"
        return own if fold is None else f"{own}/fold-{plain_name(fold)}"


def plain_name(text: str) -> str:
    """A text as part of a folder's name: letters and digits stay."""
    return "".join(c if c.isalnum() else "-" for c in text)


@dataclass(frozen=True)
class PlannedRun:
    """One training of a comparison; ``fold`` is None without folds."""

    system: System
    seed: int
    fold: str | None = None

    @property
    def folder(self) -> str:
        """Path of its folder in that of the comparison."""
        return self.system.folder(self.seed, self.fold)

    def __str__(self) -> str:
        return f"{self.system.name}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")


def check_metrics(config: CompareConfig) -> None:
    """Raise :class:`UserError` for a metric the table cannot hold."""
    unknown = sorted(set(config.metrics) - set(METRICS))
    if unknown:
        raise UserError(f"metrics: {', '.join(unknown)} is unknown; choose from {', '.join(METRICS)}")


def plan_systems(config: CompareConfig) -> list[System]:
    """Adapters × (full, ablations and twins) × backbones.

    Raises:
        UserError: an unknown adapter, or an ablation that is written wrongly or knows no such option.
    """
    known = adapter_names()
    names = known if config.adapters == ["all"] else [use_adapter(name) for name in config.adapters]
    for name in names:
        if name not in known and ":" not in name:
            raise UserError(f"adapters: {name!r} is unknown; choose from {', '.join(known)}, package.module:Class, or all")
    systems = []
    for backbone in config.backbones or [""]:
        for name in names:
            found: dict[str, dict[str, str | list[str]]] = {FULL: {}}
            for text in config.ablations:
                found |= _parse_ablations(text, name, backbone)
            found |= TEXT_TWIN if "text" in config.twins and backbone != "none" else {}
            systems += [System(name, backbone, label, options) for label, options in found.items()]
    return systems


def _parse_ablations(text: str, adapter: str, backbone: str) -> dict[str, dict[str, str | list[str]]]:
    from llm_mer.training.declared_options import options_of
    from llm_mer.training.options import DataArguments, ModelArguments

    cls = adapter_class(adapter)
    if text in ("paper", "lora"):
        rows: dict[str, Any] = {}
        if text == "paper":
            rows |= {**cls.ablations, **MODALITY_ABLATIONS, **SINGLE_MODALITIES}
        if backbone != "none":
            rows |= NO_LORA if text == "paper" else LORA_SHARINGS
        return {label: {k: str(v).lower() for k, v in options.items()} for label, options in rows.items()}
    owners = [name for name in ("*", *adapter_names()) if text.startswith(f"{name}:")]
    owner = max(owners, key=len, default=text.partition(":")[0])  # a name may hold a colon itself: package.module:Class
    separator, rest = text[len(owner) : len(owner) + 1], text[len(owner) + 1 :]
    pairs: dict[str, str | list[str]] = {}
    for name, _, value in (part.partition("=") for part in rest.split(",") if "=" in part):
        before = pairs.get(name)
        pairs[name] = value if before is None else [*([before] if isinstance(before, str) else before), value]
    if not separator or not pairs:
        raise UserError(f"ablation {text!r}: write paper, lora, or ADAPTER:option=value")
    if owner not in ("*", adapter):
        if owner not in adapter_names():
            raise UserError(f"ablation {text!r}: {owner!r} is no adapter")
        return {}
    if {"adapter", "backbone"} & set(pairs):
        raise UserError(f"ablation {text!r}: adapters and backbones are named with --adapters and --backbones")
    if set(SHARED_OPTIONS) & set(pairs):
        raise UserError(
            f"ablation {text!r}: {', '.join(sorted(set(SHARED_OPTIONS) & set(pairs)))} is the same for every system"
        )
    classes = (cls.config_class, ModelArguments, DataArguments)
    known = {f.name for owner in classes for f in dataclasses.fields(owner) if not f.metadata.get("derived")}
    unknown = sorted(set(pairs) - known)
    if unknown:
        raise UserError(
            f"ablation {text!r}: adapter {adapter!r} has no option {', '.join(unknown)}, nor have the model and the data"
        )
    lists = {option.name for owner in classes for option in options_of(owner) if option.item is not None}
    duplicates = sorted(name for name, value in pairs.items() if isinstance(value, list) and name not in lists)
    if duplicates:
        raise UserError(f"ablation {text!r}: {', '.join(duplicates)} is named twice, and it is no list")
    return {rest: pairs}
