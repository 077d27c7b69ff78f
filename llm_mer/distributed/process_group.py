"""The processes of one job, started by ``torchrun`` or ``accelerate launch``; or this process alone."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_mer.errors import UserError
from llm_mer.storage.system_errors import describe_system_error

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

TASK_COUNT_VARIABLES: dict[str, str] = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "PMI_SIZE": "mpirun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
}
"""Environment variables in which task launchers report how many tasks they started; the tasks may be independent."""
SHUTDOWN_DELAY_SECONDS = 0.3
"""Pause between the last collective and the destruction of the process group."""


def check_launch(world_size: int, environment: Mapping[str, str]) -> None:
    """Refuse a launch in which fewer processes joined than were started, and warn about tasks that would each train alone.

    Args:
        world_size: number of processes that have joined.
        environment: environment variables of this process, which launchers set.

    Raises:
        UserError: naming the launcher, both numbers where known, and the command that works.
    """
    remedy = "start them with: torchrun --standalone --nproc_per_node N finetune.py … (several nodes: docs/training.md)"
    requested = environment.get("WORLD_SIZE", "1")
    if requested.isdigit() and int(requested) > world_size:
        raise UserError(f"the launcher started {requested} processes (WORLD_SIZE), but {world_size} met here; {remedy}")
    if world_size > 1 or "WORLD_SIZE" in environment:
        return
    # accelerate's single-process launcher sets a master address only if several processes were requested.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu or a MULTI_CPU "
            f"configuration file; {remedy}"
        )
    for name, launcher in TASK_COUNT_VARIABLES.items():
        if environment.get(name, "1") not in ("", "1"):
            logger.warning(
                "%s started %s tasks (%s), each of which trains alone; %s", launcher, environment[name], name, remedy
            )
            return


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among those of the job. Every method is collective: all processes call it."""

    rank: int = 0
    world_size: int = 1
    device: str | None = None

    @classmethod
    def join(cls) -> ProcessGroup:
        """Join the process group of the job, where a launcher started several processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            check_launch(1, os.environ)
            return cls()
        import torch
        from accelerate import PartialState

        on_cpu = not torch.accelerator.is_available()
        state = PartialState(cpu=on_cpu)  # without cpu=True, processes on a CPU do not join a group
        return cls(state.process_index, state.num_processes, None if on_cpu else str(state.device))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Gather every process's value, by rank, on all processes."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.world_size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def run_together(self, work: Callable[[], Result], here: bool = True) -> list[Result | None]:
        """Run ``work`` on the ranks where ``here`` is True; every rank returns all results by rank, None for the others.

        A :class:`UserError` or file system error on one rank is raised on all of them, so that none waits forever.

        Raises:
            UserError: on every rank, the message of the first that failed. A single process raises what ``work`` raises.
        """
        if self.world_size == 1:
            return [work() if here else None]
        result: Result | None = None
        failure: UserError | OSError | None = None
        if here:
            try:
                result = work()
            except (UserError, OSError) as error:
                failure = error
        outcomes = self.gather((result, None if failure is None else describe_failure(failure)))
        message = next((text for _, text in outcomes if text is not None), None)
        if message is not None:
            raise UserError(message) from failure
        return [value for value, _ in outcomes]

    def broadcast_from_first(self, value: Any) -> Any:
        """Broadcast rank 0's value to all processes."""
        return self.gather(value if self.is_first else None)[0]


def describe_failure(error: UserError | OSError) -> str:
    """The message that the other processes get about a failure; file system errors name their file."""
    if (described := describe_system_error(error)) is not None:
        return described
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def shutdown_process_group() -> None:
    """Wait for the other processes before exiting, if a group was joined: an early exit would break their connections."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        # gloo's threads release the last collective's tensors a moment after it is done. If that happens while the
        # interpreter shuts down, the process is terminated ("terminate called without an active exception", PyTorch issue
        # 190489).
        time.sleep(SHUTDOWN_DELAY_SECONDS)
        distributed.destroy_process_group()
