"""``trainer_state.json``: how far a training has come, without the folders of one machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llm_mer.errors import UserError


def save_state_without_folders(state: TrainerState, folder: Path) -> None:
    """Write the state; the best checkpoint, which lies in the same folder as all others, is told by its name."""
    best = state.best_model_checkpoint
    written = dataclasses.replace(state, best_model_checkpoint=None if best is None else Path(best).name)
    written.save_to_json(str(folder / TRAINER_STATE_NAME))


def find_best_checkpoint(state: TrainerState, output: Path, resumed: Path | None = None, *, needed: bool = False) -> None:
    """Give a state that was read from its file the place of the best checkpoint so far.

    Its step is what is known of it: transformers (5.23) forgets a folder that is not where the file names it, and goes on
    measuring later checkpoints by its score.

    Args:
        output: where checkpoints lie. resumed: the checkpoint the run goes on from; the best may lie beside it.
        needed: whether the best is loaded at the end.

    Raises:
        UserError: it is needed and lies nowhere; another would be kept, and nobody would know.
    """
    if not state.best_global_step:
        return
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    places = [output, *([] if resumed is None else [resumed.parent])]
    for place in places:
        if (place / name).is_dir():
            state.best_model_checkpoint = str(place / name)
            return
    if needed and state.best_global_step != state.global_step:
        raise UserError(
            f"resume_from_checkpoint: the best checkpoint so far, {name}, lies not in {' or '.join(map(str, places))}, and "
            "load_best_model_at_end could not load it; put it back, or go on from an earlier checkpoint"
        )
