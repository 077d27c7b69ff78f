"""Whether the adapter of a checkpoint to begin with is the one of this run."""

from __future__ import annotations

import logging

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.errors import UserError
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
