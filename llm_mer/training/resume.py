"""Going on from a checkpoint: which one, and whether it is of this run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.backbone_reference import identify_backbone
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.integrity import COMPLETION_MARKER
from llm_mer.checkpoints.run_differences import Difference, resume_may_differ, run_differences
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.atomic_checkpoints import (
    find_corruption,
    last_complete_checkpoint,
    list_checkpoints,
)
from llm_mer.training.describe import run_setup
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import RunData

logger = logging.getLogger(__name__)


def find_resume_checkpoint(training: MerTrainingArguments) -> Path | None:
    """The checkpoint ``resume_from_checkpoint`` names; true means the last complete one in ``output_dir``, if there is one.

    Collective. True without a complete checkpoint begins anew, so that one command both starts a run and goes on with it.

    Raises:
        UserError: a named folder that is not there, holds no state of a training, or is incomplete.
    """
    wanted: Any = training.resume_from_checkpoint  # YAML's true is no text, the command line's is
    if not wanted or wanted in ("false", "False"):
        return None
    if isinstance(wanted, Path):  # by this function
        return wanted
    if wanted in (True, "true", "True"):
        output = Path(str(training.output_dir))
        processes = ProcessGroup(training.process_index, training.world_size)
        found = last_complete_checkpoint(output, processes, training.local_process_index == 0)
        if found is None and processes.is_first:
            logger.warning("resume_from_checkpoint: %s holds no complete checkpoint-N; the run begins anew", output)
        return found
    folder = Path(wanted)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint: no such folder {wanted!r}")
    kept = any(any(folder.glob(pattern)) for pattern in ("optimizer*", "global_step*", COMPLETION_MARKER))
    if not kept:
        raise UserError(
            f"resume_from_checkpoint: {folder} holds no state of a training to go on from; name one of OUTPUT/checkpoint-N"
        )
    if (reason := find_corruption(folder)) is not None:
        others = ", ".join(path.name for path in list_checkpoints(folder.parent) if path.name != folder.name)
        raise UserError(
            f"resume_from_checkpoint: {folder} is incomplete: {reason}; "
            + (f"beside it are {others}, and " if others else "")
            + "true takes the last that is complete"
        )
    return folder


def check_resume(folder: Path, config: RunConfig, run: RunData, backbone: str | None) -> None:
    """Refuse to go on from a checkpoint of another run; what may differ is :func:`~.run_differences.resume_may_differ`.

    Args:
        backbone: the folder or hub name it is loaded from; None for an adapter alone.

    Raises:
        UserError: naming everything that differs, with the value of the checkpoint and of this run.
    """
    saved = CheckpointDescription.load(folder).run
    if saved is None:
        raise UserError(
            f"resume_from_checkpoint: {folder} was written by an earlier version, which did not note every option: whether "
            "this is the same run cannot be told; train anew"
        )
    prompts = [] if backbone is None else load_prompts(config.data.prompts)
    now = run_setup(config, run, prompts, identify_backbone(backbone))
    different = run_differences(saved, now, resume_may_differ(saved.options))
    if different:
        raise incompatible_run_error(folder, different)


def incompatible_run_error(folder: Path, different: Sequence[Difference]) -> UserError:
    """Why a run cannot go on from a checkpoint, and for another number of processes what would be right."""
    listed = "; ".join(f"{d.name}: {d.before!r} there, {d.now!r} here" for d in different)
    before = next((d.before for d in different if d.name == "processes"), None)
    advice = "" if before is None else f"; start it on {before} again, or train anew into another output_dir"
    return UserError(f"resume_from_checkpoint: {folder} is of another run: {listed}{advice}")
