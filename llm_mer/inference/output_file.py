"""Where answers go: a JSONL file that an interrupted run goes on with, in parts where several processes answer."""

from __future__ import annotations

import glob
import json
import shutil
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import open_atomically

PROBABILITY_FLOOR = 0.0005
"""Probabilities below this are left out of a score's printed distribution; they stay in ``--full`` output."""


def finished_ids(path: Path, answers: int = 1, numbered: bool = False) -> set[str]:
    """Ids an interrupted run has already answered.

    A last line that broke off is cut away, and with it the last utterance when it has fewer than ``answers`` lines.
    ``numbered``: the lines are those of a :class:`PartFiles`, which begin with their place in the input.

    Raises:
        UserError: a line that ``infer.py`` did not write.
    """
    if not path.is_file():
        return set()
    found: list[str] = []
    begins: dict[str, int] = {}
    failed: set[str] = set()
    kept = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line.partition(b"\t")[2] if numbered else line)
                name = str(entry["id"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a line of infer.py; name another --output") from None
            if "error" in entry:
                failed.add(name)
            begins.setdefault(name, kept)
            found.append(name)
            kept += len(line)
    if found and found[-1] not in failed and found.count(found[-1]) < answers:
        kept = begins[found[-1]]
        found = [name for name in found if name != found[-1]]
    with path.open("rb+") as stream:
        stream.truncate(kept)
    return set(found)


@contextmanager
def opened(output: str | Path | None) -> Iterator[IO[str]]:
    """The output file for appending, or standard output."""
    if output is None:
        yield sys.stdout
        return
    with ExitStack() as stack:
        try:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(Path(output).open("a", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
        yield stream


@dataclass
class PartFiles:
    """``OUTPUT.part-N`` beside ``OUTPUT``: what process N of a job has answered, each line after its place in the input.

    Any number of processes goes on from any parts: what one of them holds is done. When all is answered the first process
    puts the lines in the order of the input behind what ``OUTPUT`` held, in one move, and removes the parts.
    """

    output: Path

    def part(self, rank: int) -> Path:
        """The file of one process."""
        return self.output.with_name(f"{self.output.name}.part-{rank}")

    def found(self) -> list[Path]:
        """The parts there are."""
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.part-[0-9]*"))

    def merge(self) -> None:
        """Parts to ``OUTPUT``. Holds 24 bytes a line; a line whose id ``OUTPUT`` has already, from a merge that was cut
        off before the parts were removed, is left out."""
        parts = self.found()
        if not parts:
            return
        before = finished_ids(self.output)
        places, files, offsets = array("q"), array("q"), array("q")
        for number, part in enumerate(parts):
            offset = 0
            with part.open("rb") as stream:
                for line in stream:
                    place, _, content = line.partition(b"\t")
                    if not before or str(json.loads(content)["id"]) not in before:
                        places.append(int(place))
                        files.append(number)
                        offsets.append(offset)
                    offset += len(line)
        order = np.argsort(np.asarray(places, dtype=np.int64), kind="stable")
        with ExitStack() as stack:
            streams = [stack.enter_context(part.open("rb")) for part in parts]
            out = stack.enter_context(open_atomically(self.output, "wb", fsync=True))
            if self.output.is_file():
                with self.output.open("rb") as kept:
                    shutil.copyfileobj(kept, out)
            for index in order:
                streams[files[index]].seek(offsets[index])
                out.write(streams[files[index]].readline().partition(b"\t")[2])
        for part in parts:
            part.unlink()


@dataclass
class AnswerFile:
    """Where one process writes, and the ids that need no answer any more."""

    stream: IO[str]
    done: set[str]
    numbered: bool

    def write(self, place: int, entry: dict[str, Any]) -> None:
        """One line about the utterance at ``place`` of the input."""
        number = f"{place}\t" if self.numbered else ""
        self.stream.write(number + json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Hand the lines to the system, so that they outlive this process."""
        self.stream.flush()


@contextmanager
def answer_file(output: str | None, processes: ProcessGroup, answers: int) -> Iterator[AnswerFile]:
    """``--output`` itself for one process; a part of it for each of several, put together at the end. Collective."""
    if output is None:
        yield AnswerFile(sys.stdout, set(), False)
        return
    files = PartFiles(Path(output))
    done: set[str] = set()
    for turn in range(2):  # the first process cuts off what broke, then the others read
        if processes.is_first == (turn == 0):
            done = finished_ids(files.output, answers)
            for part in files.found():
                done |= finished_ids(part, answers, numbered=True)
        processes.gather(None)
    parted = processes.world_size > 1 or bool(files.found())
    with opened(files.part(processes.rank) if parted else output) as stream:
        yield AnswerFile(stream, done, parted)
    processes.gather(None)
    if parted and processes.is_first:
        files.merge()


def shorten(entry: dict[str, Any]) -> dict[str, Any]:
    """A prediction's line without what is seldom read: log-probabilities, and probabilities that are nearly zero."""
    entry = dict(entry)
    entry.pop("log_probabilities", None)
    if "probabilities" in entry and "interval" in entry:
        entry["probabilities"] = {k: v for k, v in entry["probabilities"].items() if v >= PROBABILITY_FLOOR}
    return entry
