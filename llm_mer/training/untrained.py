"""Runs that train nothing, or next to it, though every option may be what was meant: said when they begin."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from llm_mer.errors import UserError

logger = logging.getLogger(__name__)

WITHOUT_WARM_UP = ("constant", "greedy", "reduce_lr_on_plateau")
"""Schedules that have none, whatever ``warmup_steps`` says."""


def warm_up_warning(steps: int, warm_up: int) -> str | None:
    """What to say where the learning rate does not come to its peak.

    The rate of step ``s = 0, 1, …`` of a warm-up of ``W`` steps is ``s / W`` of its peak.
    """
    if warm_up < 1 or steps > warm_up:
        return None
    reached = (steps - 1) / warm_up
    trained = f"only {reached:.1%} of learning_rate is reached" if reached else "its learning rate is 0: nothing is trained"
    return f"the run has {steps} steps, all of them within the {warm_up} of its warm-up: {trained}; say warmup_steps: 0"


def weights_warning(computed: Mapping[str, float], weights: Mapping[str, float]) -> str | None:
    """What to say where no loss that was computed in a step has a weight. ``computed``: by name, as ``loss_lm``."""
    names = [name.removeprefix("loss_") for name in computed]
    if not names or any(weights.get(name, 0.0) > 0 for name in names):
        return None
    return f"loss_weights: none of the losses computed here ({', '.join(names)}) weighs more than 0: nothing is trained"


def check_evaluations(args: Any, state: Any) -> None:
    """Refuse a delay of evaluations beyond the end of a run that chooses its checkpoint by them, or stops early.

    ``args`` and ``state`` are the trainer's. ``eval_delay`` counts epochs or steps, as ``eval_strategy`` does.

    Raises:
        UserError: naming the delay and the run's length.
    """
    if not (args.load_best_model_at_end or getattr(args, "early_stopping_patience", None)):
        return
    by_epoch = args.eval_strategy == "epoch"
    length, unit = (state.num_train_epochs, "epochs") if by_epoch else (state.max_steps, "steps")
    if args.eval_delay and args.eval_delay > length:
        raise UserError(
            f"eval_delay: {args.eval_delay:g}, but the run has {length} {unit}: nothing would be evaluated, and no "
            "checkpoint be told to be the best; take a smaller one"
        )


class UntrainedCheck(TrainerCallback):
    """Looks at the schedule before the first step, and at the losses after it."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._looked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_evaluations(args, state)
        if args.lr_scheduler_type in WITHOUT_WARM_UP or not state.is_world_process_zero:
            return
        if (told := warm_up_warning(state.max_steps, args.get_warmup_steps(state.max_steps))) is not None:
            logger.warning(told)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._looked or not state.is_world_process_zero:
            return
        self._looked = True
        # The trainer has counted the step already, under whose number before the losses were noted.
        found = self.trainer.losses_of_step(state.global_step - 1)
        if (told := weights_warning(found, self.trainer.loss_weights)) is not None:
            logger.warning(told)
