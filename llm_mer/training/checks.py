"""Checks of a run's options that need no data: losses that exist, sharding that an adapter bears."""

from __future__ import annotations

import logging

from transformers.integrations import is_deepspeed_zero3_enabled

from llm_mer.adapters import adapter_class
from llm_mer.adapters.base import FusionAdapter
from llm_mer.data.dataset import MerDataset
from llm_mer.distributed.fsdp import fsdp_requested
from llm_mer.errors import UserError
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.evaluation import logged_metrics
from llm_mer.training.objectives import ANSWERS, DISTRIBUTION, TOKENS
from llm_mer.training.options import ModelArguments, parse_loss_weights
from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)


def check_loss_weights(model: ModelArguments) -> dict[str, float]:
    """The adapter's default weights with the user's on top. Raises :class:`UserError` for a loss nobody computes."""
    known = {"lm": 1.0, **adapter_class(model.adapter).default_loss_weights}
    chosen = parse_loss_weights(model.loss_weights)
    if model.read_out:
        if model.backbone == "none":
            raise UserError("read_out: reads the language model's hidden state, and backbone: none has none; leave it out")
        known["read_out"] = 1.0
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UserError(f"loss_weights: adapter {model.adapter!r} has no loss {unknown}; it has {sorted(known)}")
    return {**known, **chosen}


def check_learning_rates(model: ModelArguments, training: MerTrainingArguments) -> None:
    """Refuse rates with which nothing is trained. Raises :class:`UserError` naming them."""
    adapter = training.learning_rate if model.adapter_learning_rate is None else model.adapter_learning_rate
    language_model = training.learning_rate if model.backbone != "none" and model.lora_r > 0 else 0.0
    if max(adapter, language_model) == 0:
        raise UserError(
            f"learning_rate: {training.learning_rate:g}, adapter_learning_rate: {model.adapter_learning_rate}: nothing is "
            "trained; one of what trains needs a rate above 0"
        )


def check_batch_size(training: MerTrainingArguments, questions: int) -> None:
    """Refuse to drop the only batch. Raises :class:`UserError` naming both sizes."""
    batch = training.per_device_train_batch_size * training.world_size
    if training.dataloader_drop_last and questions < batch:
        raise UserError(
            f"dataloader_drop_last: the {questions} training questions are less than one batch of {batch}, which would be "
            "dropped; take a smaller per_device_train_batch_size"
        )


def check_best_metric(training: MerTrainingArguments, evaluation: MerDataset) -> None:
    """Refuse, before a model is loaded, to choose a checkpoint by what no evaluation will log.

    Raises:
        UserError: with the metrics that there will be.
    """
    metric = training.metric_for_best_model
    if metric is None or not (training.load_best_model_at_end or training.early_stopping_patience):
        return
    name, known = metric.removeprefix("eval_"), logged_metrics(evaluation)
    if name not in known and not name.startswith("loss_"):
        raise UserError(f"metric_for_best_model: {metric!r} is not evaluated; choose from {', '.join(known)}")


LANGUAGE_MODEL_OPTIONS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_sharing", "lora_targets", "prompts", "chat", "dtype", "quantization"),
    *("attn_implementation", "save_backbone", "num_pseudo_tokens", "max_prompt_tokens"),
)
"""Options that mean nothing with ``backbone: none``."""
CONTEXT_OPTIONS = ("context_window", "bidirectional_context")
"""Options of adapters that read a conversation."""


def warn_of_unread_options(config: RunConfig) -> None:
    """Say which of the named options this run has no use for.

    One file of options often serves several runs, so these do not end it.
    """
    if config.model.backbone == "none":
        named = [name for name in LANGUAGE_MODEL_OPTIONS if name in config.given]
        if named:
            logger.warning("backbone: none has no language model, so these have no effect: %s", ", ".join(named))
    if not adapter_class(config.model.adapter).uses_context:
        named = [name for name in CONTEXT_OPTIONS if name in config.given]
        if named:
            logger.warning("adapter %r reads no conversation, so no effect: %s", config.model.adapter, ", ".join(named))


def check_objective(model: ModelArguments, training: MerTrainingArguments) -> None:
    """Refuse what an objective over answers has no use for.

    Raises:
        UserError: naming the option and what to do.
    """
    if model.objective == TOKENS:
        if model.number_objective != ModelArguments.number_objective:
            raise UserError(f"number_objective: {model.number_objective} has no effect with objective: tokens; say answers")
        for name in ("class_weights", "logit_adjustment"):
            if getattr(model, name):
                raise UserError(f"{name}: {getattr(model, name)} weighs or shifts answers; say objective: answers with it")
        return
    if model.backbone == "none":
        raise UserError("objective: answers is the language model's, and backbone: none has none; leave it out")
    for name, value in (("packing_length", training.packing_length), ("use_liger_kernel", training.use_liger_kernel)):
        if value:
            raise UserError(f"{name}: {value} lays out or learns answer tokens, of which objective: answers has its own way")


def learns_votes(model: ModelArguments) -> bool:
    """Whether the distribution of annotators' votes is learnt where there are some; their majority is otherwise."""
    return model.objective == ANSWERS and model.vote_targets == DISTRIBUTION


def check_sharding(model: ModelArguments) -> None:
    """Refuse ZeRO-3 and FSDP for an adapter that reads or changes its own parameters between steps: there they are sharded.

    Raises:
        UserError: naming the adapter and what to use instead.
    """
    adapter = adapter_class(model.adapter)
    hooks = (adapter.on_epoch_end, FusionAdapter.on_epoch_end), (adapter.followed_vectors, FusionAdapter.followed_vectors)
    how = "deepspeed: ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if fsdp_requested() else None
    if how is not None and any(own is not default for own, default in hooks):
        raise UserError(
            f"{how} shards parameters, and adapter {model.adapter!r} works on its own parameters once an epoch (a moving "
            "average); use ZeRO-2 (deepspeed_configs/zero2.json)"
        )
