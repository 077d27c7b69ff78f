"""Finds ablations that change nothing on the given data, by comparing adapters' outputs, before anything is trained."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_mer.adapters import adapter_class
from llm_mer.adapters.base import MODALITIES, AdapterConfig
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import parse_conditions
from llm_mer.experiments.comparison.systems import FULL, System
from llm_mer.experiments.options import CompareConfig

if TYPE_CHECKING:
    from torch import Tensor

    from llm_mer.training.run_config import RunConfig
    from llm_mer.training.run_data import RunData

logger = logging.getLogger(__name__)


def effective_adapter_config(config: RunConfig, data: RunData) -> AdapterConfig:
    """The adapter's configuration on this data, in which modalities that the data lack are switched off."""
    from llm_mer.training.model_builder import stand_in_config

    found = stand_in_config(config, data)
    used: dict[str, Any] = {f"use_{m}": m in found.modalities for m in MODALITIES}
    return dataclasses.replace(found, **used)


def observe_adapter(adapter: str, config: AdapterConfig) -> dict[str, Tensor]:
    """Outputs and parameters of an adapter in and after a simulated training step on random inputs of a fixed seed.

    Two configurations for which all of it is equal are one system: their options differ in something this data cannot
    show, such as attention between modalities where there is only one.
    """
    import torch

    from llm_mer.adapters import build_adapter
    from llm_mer.adapters.base import ConversationContext, FusionInputs, FusionTargets, ModalitySequence

    rows, steps, turns = 4, 5, 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_adapter(adapter, config)
        torch.manual_seed(1)
        everywhere = torch.ones(rows, turns, dtype=torch.bool)
        context = ConversationContext(everywhere, torch.tensor([[0, 1, 0]]).repeat(rows, 1), torch.full((rows,), turns - 1))
        inputs = FusionInputs(context=context if built.uses_context else None)
        for modality in config.modalities:
            size = config.feature_sizes[modality]
            features = torch.randn(rows, steps, size)
            setattr(inputs, modality, ModalitySequence(features, torch.ones(rows, steps, dtype=torch.bool)))
            setattr(context, modality, torch.randn(rows, turns, size))
            setattr(context, f"{modality}_mask", everywhere)
        classes = torch.arange(rows) % config.num_classes if config.num_classes else None
        scores = torch.linspace(*config.score_range, rows) if config.score_range is not None else None
        inputs.targets = FusionTargets(classes, scores)
        if config.num_classes and config.backbone_size:
            built.initialise_from_backbone(torch.randn(config.num_classes, config.backbone_size))
        observed = {f"start of {name}": value.clone() for name, value in built.state_dict().items()}
        for when in ("training", "evaluation"):
            torch.manual_seed(2)
            with torch.no_grad():
                output = built.train(when == "training")(inputs)
                values = {"tokens": output.pseudo_tokens, "logits": output.logits, "scores": output.scores}
                values |= output.aux_losses
                observed |= {f"{name} in {when}": value for name, value in values.items() if value is not None}
                for parameter in built.parameters():
                    parameter.add_(0.1)  # as a step of the optimiser would
            built.on_epoch_end()
        observed |= {f"end of {name}": value.clone() for name, value in built.state_dict().items()}
    return observed


def drop_ineffective_ablations(
    config: CompareConfig, systems: Sequence[System], configs: Mapping[str, RunConfig], data: RunData
) -> list[System]:
    """The systems without ablations that change nothing on this data or cannot be built on it; each is warned about.

    Args:
        configs: the training of each system, by its name.

    Raises:
        UserError: an adapter that cannot be built as the YAML file says, or a condition its modalities do not allow.
    """
    kept: list[System] = []
    seen = _SeenSetups()
    for system in systems:
        run_config = configs[system.name]
        _check_languages(system, run_config, data)
        own = effective_adapter_config(run_config, data)
        reason = _build_error(system, run_config, own)
        if not reason:
            same = seen.add(system, own, _other_options(run_config, data))
            reason = f"on this data it is the same as {same}" if same is not None else ""
        if reason:
            logger.warning("%s is left out: %s", system.name, reason)
            continue
        if system.ablation == FULL:
            modalities = [m for m in MODALITIES if m in own.modalities]
            parse_conditions(config.conditions, modalities, own.backbone_size > 0)
        kept.append(system)
    return kept


@dataclass
class _SeenSetups:
    """Setups of the systems so far, by adapter and backbone, with the outputs of full adapters."""

    setups: dict[tuple[str, str], list[tuple[str, tuple[AdapterConfig, dict[str, Any]]]]] = field(default_factory=dict)
    observed: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, system: System, own: AdapterConfig, rest: dict[str, Any]) -> str | None:
        """Add a system; returns the name of an earlier one that is the same on this data, None if there is none."""
        others = self.setups.setdefault((system.adapter, system.backbone), [])
        same = next((name for name, setup in others if setup == (own, rest)), None)
        if same is None and system.ablation in adapter_class(system.adapter).ablations:
            full, (full_config, _) = others[0]
            if self._same_outputs(system.adapter, full, full_config, own):
                same = full
        others.append((system.name, (own, rest)))
        return same

    def _same_outputs(self, adapter: str, full: str, full_config: AdapterConfig, own: AdapterConfig) -> bool:
        """Whether two configurations of an adapter behave equally, see :func:`observe_adapter`."""
        import torch

        if full not in self.observed:
            self.observed[full] = observe_adapter(adapter, full_config)
        reference, other = self.observed[full], observe_adapter(adapter, own)
        return other.keys() == reference.keys() and all(torch.equal(v, reference[k]) for k, v in other.items())


def _check_languages(system: System, config: RunConfig, data: RunData) -> None:
    languages = {data.train.language(row) for row in data.train.rows}
    chosen = config.data.languages
    if chosen is not None and not languages & set(chosen):
        raise UserError(f"{system.name}: the data have no {', '.join(chosen)}, only {', '.join(languages)}")


def _build_error(system: System, config: RunConfig, own: AdapterConfig) -> str:
    """Why an ablation cannot be built on this data; empty if it can. A full system that cannot is an error."""
    import torch

    from llm_mer.adapters import build_adapter
    from llm_mer.training.checks import check_loss_weights

    try:
        check_loss_weights(config.model)
        with torch.random.fork_rng(devices=[]):
            build_adapter(system.adapter, own)
    except (ValueError, UserError) as error:
        if system.ablation == FULL:
            raise UserError(f"adapter {system.adapter!r}: {error}") from error
        return f"it cannot be built: {error}"
    return ""


def _other_options(config: RunConfig, data: RunData) -> dict[str, Any]:
    """The options beside the adapter's that affect a run: without a backbone, none of prompts and language model."""
    from llm_mer.prompting.templates import load_prompts
    from llm_mer.training.checks import check_loss_weights
    from llm_mer.training.run_data import check_prompts

    options = {
        **dataclasses.asdict(config.model),
        **dataclasses.asdict(config.data),
        "loss_weights": check_loss_weights(config.model),
    }
    if config.model.backbone != "none":
        check_prompts(data.train, load_prompts(config.data.prompts))
        return options
    prompt_options = {"prompts", "chat", "max_prompt_tokens", "max_text_tokens"}
    kept = {"loss_weights", "adapter_learning_rate", "init_checkpoint"}
    kept |= {f.name for f in dataclasses.fields(config.data)} - prompt_options
    return {name: options[name] for name in sorted(kept)}
