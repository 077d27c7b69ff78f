"""The folder a training writes: refused where something finished would be lost, built beside where it is replaced.

A new run goes into an empty ``OUTPUT``, one that goes on stays in its own. With ``overwrite_output_dir`` the new run is
written in ``.OUTPUT.overwriting`` beside it, and takes the place when it is complete; until then ``OUTPUT`` is as it was.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.backbone_reference import BACKBONE_COPY
from llm_mer.checkpoints.description import DESCRIPTION_FILE, TRAJECTORIES
from llm_mer.checkpoints.integrity import CALIBRATION_FILE, CHECKSUMS_FILE
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest, weights_file
from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import backup_folder, install_folder, is_temporary
from llm_mer.storage.locks import check_output_path, is_lock_file
from llm_mer.storage.mount_points import is_mount_point
from llm_mer.training.atomic_checkpoints import STAGING_FOLDER, list_checkpoints, remove_checkpoints
from llm_mer.training.resume import find_resume_checkpoint
from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)

LOG_HISTORY = "log_history.json"
CARD_FILE, OLD_CARD_FILE = "README.md", "README.before.md"
CARD_MARK = b"library_name: llm_mer"
"""Line of the header of a card that ``llm-mer card`` wrote (:mod:`llm_mer.reporting.model_card`)."""
NAMED_FILES = (
    MANIFEST,
    CHECKSUMS_FILE,
    CALIBRATION_FILE,
    LOG_HISTORY,
    TRAJECTORIES,
    DESCRIPTION_FILE,
    BACKBONE_COPY,
    STAGING_FOLDER,
)
RUN_FILE = re.compile(
    r"checkpoint-\d+|.*\.safetensors|.*\.safetensors\.index\.json|(adapter_|generation_)?config\.json|.*token.*\.json|"
    r"chat_template\.(jinja|json)|.*\.model|vocab\.(json|txt)|merges\.txt|training_args\.bin|trainer_state\.json|"
    + "|".join(map(re.escape, NAMED_FILES))
)
"""Names that a training writes into its output folder."""


def is_run_file(name: str) -> bool:
    """Whether a name in an output folder is one that a training writes, and replaces with ``overwrite_output_dir``."""
    return RUN_FILE.fullmatch(name) is not None or is_leftover(name)


def is_leftover(name: str) -> bool:
    """Whether this is a lock or a temporary file, which holds nothing finished."""
    return is_lock_file(name) or is_temporary(name)


def overwriting_folder(output: Path) -> Path:
    """Where a run is written that will take the place of ``output``."""
    return output.with_name(f".{output.name}.overwriting")


def finished_content(output: Path, resuming: bool = False) -> str | None:
    """What a folder holds that a new run would spoil; None where it is empty or holds a beginning without a checkpoint.

    Args:
        resuming: the new run goes on from the last complete checkpoint, or begins the unfinished one that is there again.
    """
    if not output.is_dir():
        return None
    names = sorted(path.name for path in output.iterdir() if not is_leftover(path.name))
    foreign = [
        name for name in names if not is_run_file(name) and name not in (CARD_FILE, OLD_CARD_FILE)
    ]  # a card of the user's is kept
    if is_finished(output):
        return "holds a finished model"
    if weights_file(output) is not None and not (resuming and (output / MANIFEST).is_file()):
        return "holds a model whose run was not finished" if (output / MANIFEST).is_file() else "holds a model"
    if (checkpoints := list_checkpoints(output)) and not resuming:
        return f"holds the checkpoints of an unfinished run, the last {checkpoints[0].name}"
    if foreign:
        others = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return f"holds what no training wrote: {', '.join(foreign[:3])}{others}"
    return None


def is_finished(output: Path) -> bool:
    """Whether a manifest says that a run came to its end, or cannot be read."""
    try:
        return (output / MANIFEST).is_file() and RunManifest.load(output).complete
    except UserError:  # of another version
        return True


@dataclass(frozen=True)
class TrainingOutput:
    """The place of one training, held by its lock.

    Attributes:
        target: the folder that was asked for. working: where the run is written, until it is complete.
        first_on_node: whether this process renames on its node.
    """

    target: Path
    working: Path
    processes: ProcessGroup
    first_on_node: bool

    def publish(self) -> Path:
        """Let the finished run take the place of the old one; what no training wrote there stays. Collective."""
        self.processes.barrier()
        for turn in (self.processes.is_first, self.first_on_node and not self.processes.is_first):
            # Nodes that share the disk of the first find it done.
            self.processes.run_together(self._exchange, turn)
        return self.target

    def _exchange(self) -> None:
        if self.working != self.target and self.working.is_dir():
            rename_outdated_model_card(self.target)
            install_folder(self.working, self.target, is_run_file)


@contextmanager
def claim_output(config: RunConfig) -> Iterator[TrainingOutput]:
    """Lock the output folder of a training and say where it is written; ``config.training`` is set to that. Collective.

    ``resume_from_checkpoint`` is set to the checkpoint it stands for.

    Raises:
        UserError: on every rank: another process trains there, the folder holds something a new run would spoil, or as
            :func:`~llm_mer.training.resume.find_resume_checkpoint`.
    """
    training: Any = config.training
    check_output_path(training.output_dir)
    target = Path(str(training.output_dir))
    if target.is_symlink():
        target = Path(os.path.realpath(target))  # what takes the place lies on the same disk
    processes = ProcessGroup(training.process_index, training.world_size)
    first_on_node = training.local_process_index == 0
    resuming = training.resume_from_checkpoint in (True, "true", "True")
    beside = overwriting_folder(target)
    with lock_outputs([target], processes):
        processes.run_together(lambda: finish_exchange(target, beside), first_on_node)
        begun = beside.is_dir() and (resuming or is_inside(training.resume_from_checkpoint, beside))
        contents = [found or "" for found in processes.run_together(lambda: finished_content(target, resuming))]
        begun, found = max(zip(processes.gather(begun), contents, strict=True))
        content = found or None
        working = beside if training.overwrite_output_dir and (content or begun) else target
        if working != target and is_mount_point(target):
            raise UserError(f"overwrite_output_dir: {target} is a mount point, which no folder can replace; name one in it")
        training.output_dir = str(working)
        resumed = find_resume_checkpoint(training)
        training.resume_from_checkpoint = resumed  # a path: it is checked
        own = resumed is not None and resumed.resolve().parent == working.resolve()
        if not own and working == target and content is not None:
            raise UserError(describe_refusal(target, content, resuming))
        processes.barrier()
        overwrite = bool(training.overwrite_output_dir)
        processes.run_together(lambda: remove_unfinished_run(target, working, overwrite), not own and first_on_node)
        if working != target and processes.is_first:
            logger.info("%s %s; the new run is written in %s until it is complete", target, content or "is gone", working)
        yield TrainingOutput(target, working, processes, first_on_node)


def is_inside(checkpoint: Any, folder: Path) -> bool:
    """Whether ``resume_from_checkpoint`` is the path of a checkpoint in ``folder``."""
    return isinstance(checkpoint, str | Path) and Path(checkpoint).resolve().parent == folder.resolve()


def describe_refusal(target: Path, content: str, resuming: bool) -> str:
    """Why a run does not begin, and what would be right. ``resuming``: it was to go on from the last complete checkpoint."""
    choices = ["name another folder", "--overwrite_output_dir replaces it when the new run is complete"]
    if not resuming and list_checkpoints(target):
        choices.insert(0, "--resume_from_checkpoint true goes on with it")
    beside = overwriting_folder(target)
    if beside.is_dir():
        choices.append(
            f"{beside} is left of a run that was to replace it: both options go on with that, the last alone anew"
        )
    return f"output_dir: {target} {content}; {'; '.join(choices)}"


def remove_unfinished_run(target: Path, working: Path, overwrite: bool) -> None:
    """Delete what a run left that came to no end, where a new one is written."""
    if overwrite:
        shutil.rmtree(overwriting_folder(target), ignore_errors=True)
    if working == target and working.is_dir():
        remove_checkpoints(working)
        shutil.rmtree(working / STAGING_FOLDER, ignore_errors=True)


def rename_outdated_model_card(target: Path) -> None:
    """Rename the card that ``llm-mer card`` wrote for a model that is replaced; one that a user wrote stays as it is."""
    card = target / CARD_FILE
    if not card.is_file():
        return
    header = card.read_bytes().partition(b"\n---\n")[0].splitlines()
    if header[:1] != [b"---"] or CARD_MARK not in header:
        return
    card.replace(target / OLD_CARD_FILE)
    logger.warning(
        "%s is of the model that is replaced: it is %s now, and `llm-mer card %s` writes a new one",
        card,
        OLD_CARD_FILE,
        target,
    )


def finish_exchange(target: Path, beside: Path) -> None:
    """Complete an exchange of two folders that was killed between its renames; one of both is always whole."""
    old = backup_folder(beside)
    if not old.is_dir():
        return
    if not target.exists():
        (beside if beside.is_dir() else old).rename(target)
    shutil.rmtree(old, ignore_errors=True)
