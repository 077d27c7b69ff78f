"""Whether the adapter of a checkpoint to begin with is the one of this run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from llm_mer.adapters import adapter_class
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task
from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)

STRUCTURE = (
    *("hidden_size", "num_heads", "num_pseudo_tokens", "token_expansion", "pseudo_token_gate", "auxiliary_head"),
    *("use_text", "use_audio", "use_vision"),
)
"""Options of every adapter that say what its weights are. Heads share the weights of any number of heads, and compute
otherwise."""
TRAINING_ONLY = ("dropout", "modality_dropout", "feature_noise", "pseudo_token_dropout")
"""Options of every adapter that change nothing once it is trained."""


def check_initial_adapter(initial: CheckpointDescription, config: RunConfig, checkpoint: str) -> None:
    """Refuse a checkpoint whose adapter is another, and say which of its own options differ.

    Raises:
        UserError: another adapter, one beside a language model where there is none here or the other way round, or another
            :data:`STRUCTURE`.
    """
    where = f"init_checkpoint: {checkpoint}"
    if (there := initial.model["adapter"]) != config.model.adapter:
        raise UserError(f"{where} was trained with adapter {there!r}, not {config.model.adapter!r}")
    alone = config.model.backbone == "none"
    if (initial.model.get("text_config") is None) != alone:
        with_model, without = "beside a language model", "alone (backbone: none)"
        was, here = (with_model, without) if alone else (without, with_model)
        raise UserError(f"{where} holds an adapter that was trained {was}; this run has one {here}")
    options = {name: (initial.model["adapter_config"].get(name), now) for name, now in config.adapter_options.items()}
    derived = ("num_pseudo_tokens", "auxiliary_head") if alone else ()
    different = {
        name: pair
        for name, pair in options.items()
        if name in initial.model["adapter_config"] and name not in (*TRAINING_ONLY, *derived) and pair[0] != pair[1]
    }
    if told := [f"{name} {before!r}, not {now!r}" for name, (before, now) in different.items() if name in STRUCTURE]:
        raise UserError(f"{where} was trained with {', '.join(told)}; say so here too, or its weights mean something else")
    for name, (before, now) in different.items():
        logger.warning("%s was trained with %s %r; here it is %r", where, name, before, now)


def check_initial_head(initial: CheckpointDescription, tasks: Sequence[Task], checkpoint: str) -> None:
    """Refuse a checkpoint whose adapter has a head for other tasks than this run's, or another number of labels.

    Raises:
        UserError: naming what its head answers and what this run asks.
    """
    options = initial.model["adapter_config"]
    full = bool(options.get("auxiliary_head"))
    if not (full or adapter_class(initial.model["adapter"]).has_classifier):
        return
    labels = next((task.num_classes for task in tasks if task.kind == "classification"), 0)
    scores = full and any(task.kind == "regression" for task in tasks)
    there = _head_words(int(options.get("num_classes") or 0), full and options.get("score_range") is not None)
    if there != (here := _head_words(labels, scores)):
        raise UserError(
            f"init_checkpoint: {checkpoint} has an adapter's head for {there}, and the tasks of this run ask for {here}; "
            f"name tasks as there ({', '.join(initial.processor['tasks'])}), or train anew"
        )


def _head_words(labels: int, scores: bool) -> str:
    return " and ".join([*([f"{labels} labels"] if labels else []), *(["a score"] if scores else [])]) or "nothing"
