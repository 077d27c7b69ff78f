"""Going on from a checkpoint: which one, and whether it is of this run."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.backbone_reference import folder_fingerprint
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.model.configuration_mer import build_adapter_config
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.atomic_checkpoints import (
    COMPLETION_MARKER,
    find_corruption,
    last_complete_checkpoint,
    list_checkpoints,
)
from llm_mer.training.checks import check_loss_weights
from llm_mer.training.describe import missing_steps
from llm_mer.training.options import ModelArguments
from llm_mer.training.run_data import RunData

logger = logging.getLogger(__name__)


def resumed_folder(training: MerTrainingArguments) -> Path | None:
    """The checkpoint ``resume_from_checkpoint`` names; true means the last whole one in ``output_dir``, if there is one.

    Collective. True without a whole checkpoint begins anew, so that one command both starts a run and goes on with it.

    Raises:
        UserError: a named folder that is not there, holds no state of a training, or is not whole.
    """
    wanted: Any = training.resume_from_checkpoint  # YAML's true is no text, the command line's is
    if not wanted or wanted in ("false", "False"):
        return None
    if wanted in (True, "true", "True"):
        output = Path(str(training.output_dir))
        processes = ProcessGroup(training.process_index, training.world_size)
        found = last_complete_checkpoint(output, processes, training.local_process_index == 0)
        if found is None and processes.is_first:
            logger.warning("resume_from_checkpoint: %s holds no whole checkpoint-N; the run begins anew", output)
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
            f"resume_from_checkpoint: {folder} is not whole: {reason}; "
            + (f"beside it are {others}, and " if others else "")
            + "true takes the last that is whole"
        )
    return folder


def check_resume(
    folder: Path,
    run: RunData,
    model: ModelArguments,
    training: MerTrainingArguments,
    adapter_options: dict[str, Any],
    backbone: str | None,
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        backbone: the folder or hub name it is loaded from; None for an adapter alone.

    Raises:
        UserError: naming everything that differs, with the value of the checkpoint and of this run.
    """
    saved = CheckpointDescription.load(folder)
    alone = backbone is None
    pairs: dict[str, tuple[Any, Any]] = {
        "data (fingerprint)": (saved.data.get("fingerprint"), run.fingerprint),
        "training questions": (saved.data.get("train_questions"), len(run.train)),
        "missing steps": (saved.data.get("missing"), missing_steps(run.train)),
        "tasks": (list(saved.processor.get("tasks", {})), [task.name for task in run.tasks]),
        "adapter": (saved.model.get("adapter"), model.adapter),
        "text_source": (saved.model.get("text_source"), "features" if alone else model.text_source),
    }
    if pairs["tasks"][0] == pairs["tasks"][1]:
        for task in run.tasks:
            pairs[f"task {task.name}"] = (saved.processor["tasks"][task.name], json.loads(json.dumps(task.to_dict())))
    if pairs["adapter"][0] == pairs["adapter"][1]:
        config, old = build_adapter_config(model.adapter, adapter_options), saved.model.get("adapter_config") or {}
        implied = ("num_pseudo_tokens", "auxiliary_head") if alone else ()
        for entry in dataclasses.fields(config):
            if entry.name in old and entry.name not in implied and not entry.metadata.get("derived"):
                pairs[entry.name] = (old[entry.name], json.loads(json.dumps(getattr(config, entry.name))))
    reference = saved.backbone
    if backbone is None or reference is None:
        pairs["backbone"] = ("none" if reference is None else reference.name, "none" if backbone is None else backbone)
    else:
        local = Path(backbone).is_dir()
        found = folder_fingerprint(Path(backbone)) if local else None
        pairs["backbone"] = (
            (f"{reference.name} ({reference.fingerprint[:12]}…)" if reference.fingerprint else reference.name),
            (f"{Path(backbone).name} ({found[:12]}…)" if found else backbone),
        )
        if found is not None and found == reference.fingerprint:
            del pairs["backbone"]
        lora = saved.training.get("lora") or {}
        now = {"r": model.lora_r, "alpha": model.lora_alpha, "dropout": model.lora_dropout}
        pairs |= {f"lora_{name}": (lora.get(name), value) for name, value in now.items()}
        pairs["lora_sharing"] = (saved.model.get("lora_sharing"), model.lora_sharing)
        pairs["quantization"] = (reference.quantization, model.quantization)
    pairs["seed"] = (saved.training.get("seed"), training.seed)
    pairs["learning_rate"] = (saved.training.get("learning_rate"), training.learning_rate)
    pairs["loss_weights"] = (saved.training.get("loss_weights"), check_loss_weights(model))
    different = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in pairs.items() if old != new]
    if different:
        raise UserError(f"resume_from_checkpoint: {folder} is of another run: {'; '.join(different)}")
