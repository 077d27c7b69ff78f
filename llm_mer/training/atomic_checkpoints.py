"""Checkpoints to resume from that are whole or not there: sealed with sizes and digests, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError

logger = logging.getLogger(__name__)

SEAL = "complete.json"
"""Written last: size and SHA-256 of every other file of the checkpoint."""
SCRATCH = ".unfinished"
"""Where checkpoints are written, inside the folder they are renamed into: on the same file system."""


def seal(folder: Path) -> None:
    """Note size and digest of every file, with all of them on the disk before the note is."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    with (folder / SEAL).open("w", encoding="utf-8") as stream:
        json.dump({"files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where every file is there as it was sealed."""
    if not (folder / SEAL).is_file():
        return f"no {SEAL}: it was not finished, or an earlier version wrote it"
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{SEAL} is damaged"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["size"]:
            return f"{name} has {size} bytes, {entry['size']} were written"
    for name, entry in files.items():
        with (folder / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                return f"{name} is not what was written"
    return None


def checkpoints(output: Path) -> list[Path]:
    """``checkpoint-N`` folders, whole or not, the last step first."""
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if p.is_dir() and (m := re.fullmatch(r".*-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def remove_checkpoints(output: Path) -> None:
    """Delete what an earlier run left in a folder in which another begins, or this one would go on from that."""
    left = checkpoints(output)
    if left:
        logger.warning(
            "%s holds checkpoints of an earlier run, which are deleted: %s", output, ", ".join(p.name for p in left)
        )
    for path in left:
        shutil.rmtree(path)


def last_whole(output: Path, processes: ProcessGroup, one_a_node: bool) -> Path | None:
    """The last checkpoint that is whole on every node; each later one is named in a warning. Collective.

    Args:
        one_a_node: whether this process looks for its node; the others take its word.
    """
    damaged = {}
    whole = None
    names = [path.name for path in checkpoints(output)] if one_a_node else []
    # Nodes need not share their disks: a step counts that is whole on each of them.
    common = set.intersection(*(set(found) for found, looked in processes.gather((names, one_a_node)) if looked))
    for name in sorted(common, key=lambda name: int(name.rpartition("-")[2]), reverse=True):
        found = [reason for reason in processes.gather(damage(output / name) if one_a_node else None) if reason]
        if not found:
            whole = output / name
            break
        damaged[name] = found[0]
    if processes.is_first:
        for name, reason in damaged.items():
            logger.warning("resume_from_checkpoint: %s is not whole (%s); the one before it is taken", output / name, reason)
    return whole


@dataclass(frozen=True)
class Saving:
    """One checkpoint on its way: written under a scratch name, sealed, renamed when all processes are done.

    Attributes:
        output: the folder of the run. name: ``checkpoint-N``.
        local_first: whether this is the first process of its node.
    """

    output: Path
    name: str
    processes: ProcessGroup
    local_first: bool

    @property
    def scratch(self) -> Path:
        """Where ``checkpoint-N`` is written."""
        return self.output / SCRATCH

    def begin(self) -> None:
        """Clear what an earlier end left behind."""
        if self.local_first:
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.processes.barrier()

    def finish(self, keep: int | None, best: str | None) -> None:
        """Rename into place, first on the first node; where nodes share no disk the others have theirs to rename."""
        self.processes.barrier()
        if self.processes.is_first:
            self._rename(keep, best)
        self.processes.barrier()
        if self.local_first and (self.scratch / self.name).is_dir():
            self._rename(keep, best)

    def _rename(self, keep: int | None, best: str | None) -> None:
        source, target = self.scratch / self.name, self.output / self.name
        seal(source)
        if target.exists():  # of this step, by a run that was resumed from before it
            target.rename(self.scratch / f"{self.name}.before")
        source.rename(target)
        folder = os.open(self.output, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._rotate(keep, best)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _rotate(self, keep: int | None, best: str | None) -> None:
        """Delete down to ``keep``, never this one or the best; each leaves its name before its first file goes."""
        new = self.output / self.name
        kept = {new.name, Path(best).name if best else ""}
        others = [path for path in checkpoints(self.output) if path.name not in kept]
        step = int(self.name.rpartition("-")[2])
        # Steps to come are left from a run that this one was resumed in the middle of: they go first, then the oldest.
        old = sorted(others, key=lambda path: (int(path.name.rpartition("-")[2]) < step, int(path.name.rpartition("-")[2])))
        excess = len(checkpoints(self.output)) - keep if keep else 0
        for path in old[: max(excess, 0)]:
            path.rename(self.scratch / path.name)

    def abandon(self) -> None:
        """Give the room of an unfinished checkpoint back."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def describe_last(output: Path) -> str:
    """Where a run can go on from, for a message."""
    last = next((path for path in checkpoints(output) if damage(path) is None), None)
    if last is None:
        return f"{output} holds no whole checkpoint yet"
    return f"{last} is whole; go on from there with --resume_from_checkpoint true"


def full_disk(error: Exception, output: Path) -> UserError | None:
    """The one error for a disk that is full, None where something else went wrong."""
    if not any(is_full_disk(cause) for cause in causes(error)):
        return None
    return UserError(f"output_dir: no space left on the disk of {output}; make room: {describe_last(output)}")


def causes(error: BaseException) -> Sequence[BaseException]:
    """An error and what it came from."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says so: Python's by its number, safetensors' by its text, torch's by having written too little."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = str(error)
    short = isinstance(error, RuntimeError) and "inline_container" in told and "unexpected pos" in told
    return short or "os error 28" in told
