"""Checkpoints to resume from that are complete or absent: a list of sizes and digests, then a rename into place."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from llm_mer.checkpoints.integrity import COMPLETION_MARKER
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import fsync_folder, write_json_atomically
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.system_errors import error_chain, is_disk_full

logger = logging.getLogger(__name__)

STAGING_FOLDER = ".unfinished"
"""Where a checkpoint is written before it is renamed: inside the output folder, and so on the same file system."""


def write_completion_marker(folder: Path) -> None:
    """Write :data:`COMPLETION_MARKER` over every file of the folder, once all of them are on the disk (fsync)."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    write_json_atomically(folder / COMPLETION_MARKER, {"files": files})


def find_corruption(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file has the size and digest that it was written with."""
    if not (folder / COMPLETION_MARKER).is_file():
        return f"no {COMPLETION_MARKER}: it was not finished, or an earlier version wrote it"
    try:
        files = read_json_object(folder / COMPLETION_MARKER)["files"]
    except (UserError, KeyError):
        return f"{COMPLETION_MARKER} is damaged"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{name} has {size} bytes, {entry['size']} were written"
    for name, entry in files.items():
        if file_sha256(folder / name) != entry["sha256"]:
            return f"{name} is not what was written"
    return None


def list_checkpoints(output: Path) -> list[Path]:
    """``checkpoint-N`` folders, complete or not, the last step first."""
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if p.is_dir() and (m := re.fullmatch(r".*-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def remove_checkpoints(output: Path) -> None:
    """Delete the checkpoints of an earlier run in the folder of a new one, which could otherwise resume from them."""
    left = list_checkpoints(output)
    if left:
        logger.warning(
            "%s holds checkpoints of an earlier run, which are deleted: %s", output, ", ".join(p.name for p in left)
        )
    for path in left:
        shutil.rmtree(path)


def last_complete_checkpoint(output: Path, processes: ProcessGroup, first_on_node: bool) -> Path | None:
    """The last checkpoint that is complete on every node; a warning names each later one. Collective.

    Args:
        first_on_node: whether this process checks the files of its node; the others use its result.
    """
    corrupted = {}
    complete = None
    names = [path.name for path in list_checkpoints(output)] if first_on_node else []
    # Nodes need not share their disks: a step counts where it is complete on each of them.
    common = set.intersection(*(set(found) for found, checked in processes.gather((names, first_on_node)) if checked))
    for name in sorted(common, key=lambda name: int(name.rpartition("-")[2]), reverse=True):
        found = [reason for reason in processes.gather(find_corruption(output / name) if first_on_node else None) if reason]
        if not found:
            complete = output / name
            break
        corrupted[name] = found[0]
    if processes.is_first:
        for name, reason in corrupted.items():
            logger.warning(
                "resume_from_checkpoint: %s is incomplete (%s); the one before it is taken", output / name, reason
            )
    return complete


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes one checkpoint into a staging folder and renames it into place when all processes are done.

    Attributes:
        output: the folder of the run. name: ``checkpoint-N``.
        local_first: whether this is the first process of its node.
    """

    output: Path
    name: str
    processes: ProcessGroup
    local_first: bool

    @property
    def staging(self) -> Path:
        """The folder in which ``checkpoint-N`` is written."""
        return self.output / STAGING_FOLDER

    def prepare(self) -> None:
        """Delete what an interrupted write left behind."""
        if self.local_first:
            shutil.rmtree(self.staging, ignore_errors=True)
        self.processes.barrier()

    def commit(self, keep: int | None, best: str | None) -> None:
        """Rename into place, on the first node first; nodes that do not share its disk then rename their own files."""
        self.processes.barrier()
        self.processes.run_together(lambda: self._rename(keep, best), self.processes.is_first)
        if self.local_first and (self.staging / self.name).is_dir():
            self._rename(keep, best)

    def _rename(self, keep: int | None, best: str | None) -> None:
        source, target = self.staging / self.name, self.output / self.name
        write_completion_marker(source)
        if target.exists():  # from a run of which this one repeats the step
            target.rename(self.staging / f"{self.name}.before")
        source.rename(target)
        fsync_folder(self.output)
        self._rotate(keep, best)
        shutil.rmtree(self.staging, ignore_errors=True)

    def _rotate(self, keep: int | None, best: str | None) -> None:
        """Delete old checkpoints down to ``keep``, never this one or the best; each is renamed before it is deleted."""
        new = self.output / self.name
        kept = {new.name, Path(best).name if best else ""}
        others = [path for path in list_checkpoints(self.output) if path.name not in kept]
        step = int(self.name.rpartition("-")[2])
        # Later steps are from a run that this one resumed before its end: they are deleted first, then the oldest.
        old = sorted(others, key=lambda path: (int(path.name.rpartition("-")[2]) < step, int(path.name.rpartition("-")[2])))
        excess = len(list_checkpoints(self.output)) - keep if keep else 0
        for path in old[: max(excess, 0)]:
            path.rename(self.staging / path.name)

    def abort(self) -> None:
        """Delete the unfinished checkpoint, and free its disk space."""
        shutil.rmtree(self.staging, ignore_errors=True)


def describe_last_checkpoint(output: Path) -> str:
    """The checkpoint to resume from, as part of a message."""
    last = next((path for path in list_checkpoints(output) if find_corruption(path) is None), None)
    if last is None:
        return f"{output} holds no complete checkpoint yet"
    return f"{last} is complete; go on from there with --resume_from_checkpoint true"


def disk_full_error(error: Exception, output: Path) -> UserError | None:
    """A :class:`UserError` for a full disk; None for any other error."""
    if not any(is_disk_full(cause) for cause in error_chain(error)):
        return None
    return UserError(f"output_dir: no space left on the disk of {output}; make room: {describe_last_checkpoint(output)}")
