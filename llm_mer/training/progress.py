"""The trainer's progress where there is no terminal: lines in the log in place of a bar's frames."""

from __future__ import annotations

import logging
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_mer.distributed.progress import ProgressLog, has_terminal

logger = logging.getLogger(__name__)


class ProgressLogCallback(TrainerCallback):
    """A line of progress now and then, and each log entry (every ``logging_steps``) as one line, by the first process."""

    def __init__(self) -> None:
        self.progress: ProgressLog | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin to count at the step that a resumed run goes on from."""
        if state.is_world_process_zero:
            self.progress = ProgressLog(description="train", unit="step", total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One more step, or several where some were skipped."""
        if self.progress is not None:
            self.progress.update(state.global_step - self.progress.done)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """``step 20/266: loss 2.31, learning_rate 0.004``."""
        if state.is_world_process_zero and logs:
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in logs.items() if k != "total_flos"}
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            logger.info("step %d/%d: %s", state.global_step, state.max_steps, shown)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The last line."""
        if self.progress is not None:
            self.progress.close()
            self.progress = None


def log_progress_without_terminal(trainer: Trainer) -> None:
    """Replace the trainer's bar, which prints every frame into a log, where standard error is no terminal."""
    if not has_terminal() and not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLogCallback())
