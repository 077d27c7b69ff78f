"""``trainer_state.json``: how far a training has come, without the folders of one machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def save_state_without_folders(state: TrainerState, folder: Path) -> None:
    """Write the state; the best checkpoint, which lies in the same folder as all others, is told by its name."""
    best = state.best_model_checkpoint
    written = dataclasses.replace(state, best_model_checkpoint=None if best is None else Path(best).name)
    written.save_to_json(str(folder / TRAINER_STATE_NAME))


def find_best_checkpoint(state: TrainerState, output: Path) -> None:
    """Give a state that was read from its file the place of the best checkpoint, where it lies in ``output`` now."""
    best = output / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    if state.best_model_checkpoint is not None and best.is_dir():
        state.best_model_checkpoint = str(best)
