"""All that was asked of a training, validated once and handed on as one object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from llm_mer.adapters import adapter_class
from llm_mer.adapters.base import AdapterConfig
from llm_mer.backbones.lora_sharing import SHARED
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.errors import UserError
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.declared_options import Option, options_of
from llm_mer.training.options import SECRETS, DataArguments, ModelArguments

LORA_OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_sharing", "lora_targets")
"""Options of LoRA, which a run with ``init_checkpoint`` has from there."""


@dataclass(frozen=True)
class RunConfig:
    """Data, model, adapter and training options of one run.

    Attributes:
        given: the options that were named, by YAML file, command line or program; all others have their defaults.
        adapter: the chosen adapter's own typed options, without what the data and the backbone add to them.
    """

    given: Mapping[str, Any]
    data: DataArguments
    model: ModelArguments
    adapter: AdapterConfig
    training: MerTrainingArguments

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> RunConfig:
        """The configuration of the named options.

        Raises:
            UserError: an unknown option, one whose value cannot be, or options that do not fit one another.
        """
        given = dict(given)
        adapter = config_class_of(str(given.get("adapter", ModelArguments.adapter)))
        types: tuple[type, ...] = (DataArguments, ModelArguments, adapter, MerTrainingArguments)
        known = {option.name for group in types for option in options_of(group)}
        unknown = sorted(set(given) - known)
        if unknown:
            name = given.get("adapter", ModelArguments.adapter)
            raise UserError(f"adapter {name!r} has no option {unknown}, nor has the run; it knows {sorted(known)}")
        values = {**given, **lora_of_init_checkpoint(given)}
        built: list[Any] = []
        for group in types:
            try:
                built.append(group(**{o.name: values[o.name] for o in options_of(group) if o.name in values}))
            except ValueError as error:
                raise UserError(" ".join(str(error).split())) from error
        check_choices(*built)
        return cls(given, *built)

    def replace(self, **changes: Any) -> RunConfig:
        """The same with other values of the named options; defaults follow the adapter where that is changed."""
        return RunConfig.build({**self.given, **changes})

    @property
    def adapter_options(self) -> dict[str, Any]:
        """Every option of the adapter, what is derived from the data left out."""
        return {o.name: getattr(self.adapter, o.name) for o in options_of(type(self.adapter))}

    def options(self) -> dict[str, dict[str, Any]]:
        """Every option as JSON holds it, tokens left out, before this machine fills in its own (``bf16`` and others)."""
        groups = {
            "data": _fields(self.data),
            "model": _fields(self.model),
            "training": self.training.given,
            "adapter": self.adapter_options,
        }
        return {name: _plain(values) for name, values in groups.items()}


def config_class_of(adapter: str) -> type[AdapterConfig]:
    """The options class of an adapter by name. Raises :class:`UserError` naming the choices."""
    try:
        return adapter_class(adapter).config_class
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None


def option_groups_of_run(adapter: str) -> dict[str, list[Option]]:
    """Every option of a run with this adapter, by what declares it."""
    return {
        "Data": options_of(DataArguments),
        "Model": options_of(ModelArguments),
        f"Adapter {adapter}": options_of(config_class_of(adapter)),
        "Training": options_of(MerTrainingArguments),
    }


def options_of_run(adapter: str) -> list[Option]:
    """Every option of a run with this adapter."""
    return [option for options in option_groups_of_run(adapter).values() for option in options]


def lora_of_init_checkpoint(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of LoRA that a run with ``init_checkpoint`` goes on with: those of the checkpoint.

    Raises:
        UserError: a named option that is another there, or no checkpoint.
    """
    folder = given.get("init_checkpoint")
    if not folder or given.get("backbone") == "none":
        return {}
    description = CheckpointDescription.load(Path(folder))
    if description.run is not None:
        model = description.run.options["model"]
        real = {name: model[name] for name in LORA_OPTIONS if name in model}
    else:  # written before every option was noted
        real = {f"lora_{name}": value for name, value in (description.training.get("lora") or {}).items()}
        real["lora_sharing"] = description.model.get("lora_sharing", SHARED)
    different = [
        f"{name} {value!r}, not {given[name]!r}" for name, value in real.items() if name in given and given[name] != value
    ]
    if different:
        raise UserError(
            f"init_checkpoint: {folder} has {', '.join(different)}; its LoRA goes on as it is there: leave these options out"
        )
    return real


def check_choices(*groups: Any) -> None:
    """Options with a closed set of values.

    Raises:
        UserError: naming the option, its value and the choices.
    """
    for group in groups:
        for entry in dataclasses.fields(group):
            value, choices = getattr(group, entry.name), entry.metadata.get("choices")
            unset = value is None and entry.default is None
            if choices is not None and value not in choices and not unset:
                raise UserError(f"{entry.name}: {value!r} is not one of {', '.join(map(str, choices))}")


def _fields(options: Any) -> dict[str, Any]:
    return {entry.name: getattr(options, entry.name) for entry in dataclasses.fields(options)}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    def simple(value: Any) -> Any:
        return value.value if isinstance(value, Enum) else str(value)

    loaded: dict[str, Any] = json.loads(json.dumps({k: v for k, v in options.items() if k not in SECRETS}, default=simple))
    return loaded
