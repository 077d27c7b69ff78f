"""Where answers go: a JSONL file that an interrupted run goes on with, in parts where several processes answer."""

from __future__ import annotations

import glob
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import open_atomically
from llm_mer.storage.json_lines import parse_json_object
from llm_mer.storage.standard_output import write_standard_output
from llm_mer.storage.system_errors import reason_and_remedy

INPUT = "input"
"""Field of a row of an output file: :func:`llm_mer.inference.provenance.input_digest` of its utterance."""
PROBABILITY_FLOOR = 0.0005
"""Probabilities below this are left out of a score's printed distribution; they stay in ``--full`` output."""


def finished_ids(path: Path, answers: int = 1, numbered: bool = False) -> set[str]:
    """Ids an interrupted run has already answered. Cuts off and raises as :func:`finished_answers`."""
    return set(finished_answers(path, answers, numbered))


def finished_answers(path: Path, answers: int = 1, numbered: bool = False) -> dict[str, str | None]:
    """Ids an interrupted run has already answered, each with the digest of its input; None for a line without one.

    A last line that broke off is cut away, and with it the last utterance when it has fewer than ``answers`` lines.
    ``numbered``: the lines are those of a :class:`PartFiles`, which begin with their place in the input.

    Raises:
        UserError: a line that ``infer.py`` did not write.
    """
    if not path.is_file():
        return {}
    found: list[str] = []
    inputs: dict[str, str | None] = {}
    begins: dict[str, int] = {}
    failed: set[str] = set()
    kept = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                where = f"{path}:{number}"
                place, _, content = line.partition(b"\t") if numbered else (b"0", b"", line)
                if not place.isdigit():
                    raise UserError("it does not begin with its place in the input")
                entry = parse_json_object(content, where)
                name, given = str(entry["id"]), entry.get(INPUT)
            except (UserError, KeyError) as error:
                reason = f" ({str(error).removeprefix(f'{where}: ')})" if isinstance(error, UserError) else ""
                raise UserError(f"{where}: not a line of infer.py{reason}; name another --output") from None
            if "error" in entry:
                failed.add(name)
            begins.setdefault(name, kept)
            inputs[name] = given
            found.append(name)
            kept += len(line)
    if found and found[-1] not in failed and found.count(found[-1]) < answers:
        kept = begins[found[-1]]
        del inputs[found[-1]]
    with path.open("rb+") as stream:
        stream.truncate(kept)
    return inputs


class LineFile:
    """A file that lines are appended to, with nothing held back: what a full disk cuts off is taken away again."""

    def __init__(self, path: Path) -> None:
        try:
            self.raw = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"--output {path}: cannot be written: {reason_and_remedy(error)}") from None
        self.path = path

    def write(self, text: str) -> None:
        """Append whole lines.

        Raises:
            UserError: the disk is full, or the file cannot be written any more; the lines that fitted in stay.
        """
        data, done = text.encode(), 0
        start = os.fstat(self.raw.fileno()).st_size
        try:
            while done < len(data):
                done += self.raw.write(data[done:])
        except OSError as error:
            with suppress(OSError):
                self.raw.truncate(start + data.rfind(b"\n", 0, done) + 1)
            raise UserError(
                f"--output {self.path}: cannot be written: {error.strerror}; the answers up to here are kept, and the same "
                "command goes on from them when there is room"
            ) from None

    def close(self) -> None:
        """Close the file. Raises :class:`UserError` where it was removed or replaced while it was written."""
        written = os.fstat(self.raw.fileno())
        self.raw.close()
        if not (self.path.exists() and os.path.samestat(written, self.path.stat())):
            raise UserError(f"--output {self.path}: was removed while it was being written; its answers are lost")


class StandardOutput:
    """Lines on standard output."""

    def write(self, text: str) -> None:
        """Write and flush. Raises as :func:`~llm_mer.storage.standard_output.write_standard_output`."""
        write_standard_output(text)

    def close(self) -> None:
        """Nothing to close."""


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

    def answered(self, answers: int) -> dict[str, str | None]:
        """:func:`finished_answers` of the file and its parts together."""
        done = finished_answers(self.output, answers)
        for part in self.found():
            done |= finished_answers(part, answers, numbered=True)
        return done

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
                for number_of_line, line in enumerate(stream, 1):
                    place, _, content = line.partition(b"\t")
                    if not before or str(parse_json_object(content, f"{part}:{number_of_line}")["id"]) not in before:
                        places.append(int(place))
                        files.append(number)
                        offsets.append(offset)
                    offset += len(line)
        order = np.argsort(np.asarray(places, dtype=np.int64), kind="stable")
        try:
            self._write_merged(parts, order, files, offsets)
        except OSError as error:
            raise UserError(
                f"--output {self.output}: cannot be written: {error.strerror}; the answers are kept beside it, and the same "
                "command puts them together when there is room"
            ) from None
        for part in parts:
            part.unlink()

    def _write_merged(self, parts: list[Path], order: Any, files: array[int], offsets: array[int]) -> None:
        with ExitStack() as stack:
            streams = [stack.enter_context(part.open("rb")) for part in parts]
            out = stack.enter_context(open_atomically(self.output, "wb", fsync=True))
            if self.output.is_file():
                with self.output.open("rb") as kept:
                    shutil.copyfileobj(kept, out)
            for index in order:
                streams[files[index]].seek(offsets[index])
                out.write(streams[files[index]].readline().partition(b"\t")[2])


@dataclass
class AnswerFile:
    """Where one process writes, and what needs no answer any more.

    Attributes:
        done: ids answered before, each with the digest of its input (None for a line that has none).
        numbered: whether lines begin with their place in the input.
    """

    target: LineFile | StandardOutput
    done: dict[str, str | None] = field(default_factory=dict)
    numbered: bool = False
    pending: list[str] = field(default_factory=list)

    def write(self, place: int, entry: dict[str, Any]) -> None:
        """One line about the utterance at ``place`` of the input, to be handed on by :meth:`flush`."""
        number = f"{place}\t" if self.numbered else ""
        self.pending.append(number + json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Hand the lines to the system, so that they outlive this process. Raises :class:`UserError` for a full disk."""
        text = "".join(self.pending)
        self.pending.clear()
        if text:
            self.target.write(text)


@contextmanager
def lock_answers(output: str | None, processes: ProcessGroup) -> Iterator[None]:
    """Hold the lock of ``--output`` for the whole job; nothing for standard output. Collective where it is entered.

    Raises:
        UserError: on every process, where another job writes there or nothing can be written.
    """
    if output is None:
        yield
        return

    def make_parent() -> None:
        try:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {output}: cannot be written: {reason_and_remedy(error)}") from None

    processes.run_together(make_parent)
    with lock_outputs([Path(output)], processes):
        yield


@dataclass(frozen=True)
class Continuation:
    """What has to hold for a file of answers to be continued; each raises :class:`UserError` where it does not.

    Attributes:
        claim: called with the file, and whether it has any content, before anything in it is touched.
        compare: called with what is answered, each id with the digest of its input.
    """

    claim: Callable[[Path, bool], None]
    compare: Callable[[dict[str, str | None]], None]


@contextmanager
def answer_file(
    output: str | None, processes: ProcessGroup, answers: int, continuation: Continuation
) -> Iterator[AnswerFile]:
    """``--output`` itself for one process; a part of it for each of several, put together at the end. Collective.

    Args:
        answers: lines of an utterance.

    Raises:
        UserError: the file is none of ``infer.py``, or must not be continued.
    """
    if output is None:
        yield AnswerFile(StandardOutput())
        return
    files = PartFiles(Path(output))
    done: dict[str, str | None] = {}
    refused: str | None = None
    if processes.is_first:  # cuts off what broke, then the others read
        try:
            written = [path for path in (files.output, *files.found()) if path.is_file()]
            continuation.claim(files.output, any(path.stat().st_size for path in written))
            done = files.answered(answers)
            continuation.compare(done)
        except UserError as error:
            refused = str(error)
        except OSError as error:
            refused = f"--output {output}: cannot be written: {reason_and_remedy(error)}"
    if (refused := next((r for r in processes.gather(refused) if r is not None), None)) is not None:
        raise UserError(refused)
    if not processes.is_first:
        done = files.answered(answers)
    parted = processes.world_size > 1 or bool(files.found())
    processes.gather(None)  # nobody writes before all have read
    target = LineFile(files.part(processes.rank) if parted else files.output)
    file = AnswerFile(target, done, parted)
    try:
        yield file
    except BaseException:
        with suppress(UserError):  # what is written already is kept; the first error is the one to tell
            file.flush()
            target.close()
        raise
    file.flush()
    target.close()
    processes.gather(None)
    if parted and processes.is_first:
        files.merge()


def shorten(entry: dict[str, Any]) -> dict[str, Any]:
    """A prediction's line without what is seldom read: log-probabilities, and probabilities that are nearly zero."""
    entry = dict(entry)
    for name in ("log_probabilities", "head_log_probabilities"):
        entry.pop(name, None)
    if "probabilities" in entry and "interval" in entry:
        entry["probabilities"] = _without_floor(entry["probabilities"])
        if "windows" in entry:
            entry["windows"] = [w | {"probabilities": _without_floor(w["probabilities"])} for w in entry["windows"]]
    return entry


def _without_floor(probabilities: dict[str, float]) -> dict[str, float]:
    return {answer: p for answer, p in probabilities.items() if p >= PROBABILITY_FLOOR}
