"""What the file system refuses to one rank ends every rank with that rank's line, and none waits for another."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.inference.output_file import lock_answers
from llm_mer.training import output_folder
from llm_mer.training.atomic_checkpoints import CheckpointWriter

PATIENCE = 5.0
"""Seconds after which a rank that waits for another has failed."""


@dataclass
class Meeting:
    """Where threads that stand for two ranks exchange values."""

    values: list[Any] = field(default_factory=lambda: [None, None])
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=PATIENCE))


@dataclass(frozen=True)
class Rank(ProcessGroup):
    """A thread as one of two ranks."""

    meeting: Meeting = field(default_factory=Meeting)

    def gather(self, value: Any) -> list[Any]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        found = list(self.meeting.values)
        self.meeting.barrier.wait()
        return found

    def barrier(self) -> None:
        self.meeting.barrier.wait()


def outcomes(work: Callable[[Rank], Any]) -> list[str]:
    """What each of two ranks ends with: the message of its error, or its result."""
    meeting = Meeting()

    def one(rank: int) -> str:
        try:
            return str(work(Rank(rank, 2, meeting=meeting)))
        except (UserError, OSError, threading.BrokenBarrierError) as error:
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied", "/the/place")


REFUSED = ["UserError: /the/place: Permission denied; give this user access to it, or name another path"] * 2


def test_results_come_to_every_rank_and_none_from_one_that_did_nothing() -> None:
    assert outcomes(lambda rank: rank.run_together(lambda: rank.rank + 5)) == ["[5, 6]"] * 2
    assert outcomes(lambda rank: rank.run_together(lambda: 7, here=rank.is_first)) == ["[7, None]"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_the_failure_of_one_rank_is_every_ranks(failing: int) -> None:
    assert outcomes(lambda rank: rank.run_together(refuse, here=rank.rank == failing)) == REFUSED
    assert outcomes(lambda rank: rank.run_together(refuse)) == REFUSED


def test_one_process_alone_keeps_its_own_error() -> None:
    with pytest.raises(PermissionError):
        ProcessGroup().run_together(refuse)


def test_a_lock_that_cannot_be_had_is_told_by_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_mer.distributed.output_lock.lock_output", refuse)

    def lock(rank: Rank) -> None:
        with lock_outputs([tmp_path / "x"], rank):
            raise AssertionError("locked")

    assert outcomes(lock) == REFUSED


def test_a_folder_of_answers_that_one_rank_cannot_make_is_told_by_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.local()

    def mkdir(self: Path, *_: Any, **__: Any) -> None:
        if made.rank == 1:
            refuse()

    def lock(rank: Rank) -> None:
        made.rank = rank.rank
        with lock_answers(str(tmp_path / "new" / "answers.jsonl"), rank):
            raise AssertionError("locked")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    first, second = outcomes(lock)
    assert first == second
    assert first.endswith(
        "answers.jsonl: cannot be written: Permission denied; give this user access to it, or name another path"
    )


@pytest.mark.parametrize("step", ["finish_exchange", "finished_content", "remove_unfinished_run"])
def test_an_output_folder_that_one_rank_cannot_use_is_told_by_every_rank(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, threads = Meeting(), threading.local()
    real = getattr(output_folder, step)
    monkeypatch.setattr(output_folder, "ProcessGroup", lambda rank, world: Rank(rank, world, meeting=meeting))
    monkeypatch.setattr(output_folder, step, lambda *given: refuse() if threads.rank == 1 else real(*given))

    def claim(rank: Rank) -> None:
        threads.rank = rank.rank
        training = SimpleNamespace(
            output_dir=str(tmp_path / "run"), resume_from_checkpoint=None, overwrite_output_dir=False,
            process_index=rank.rank, world_size=2, local_process_index=0,
        )  # fmt: skip
        with output_folder.claim_output(SimpleNamespace(training=training)):  # type: ignore[arg-type]
            raise AssertionError("claimed")

    assert outcomes(claim) == REFUSED


def test_a_checkpoint_that_the_first_rank_cannot_put_in_place_is_told_by_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointWriter, "_rename", refuse)
    assert (
        outcomes(lambda rank: CheckpointWriter(tmp_path, "checkpoint-1", rank, rank.is_first).commit(None, None)) == REFUSED
    )
