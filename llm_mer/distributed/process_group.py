"""The processes of one job, started by ``torchrun`` or ``accelerate launch``; or just this one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_mer.errors import UserError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

TASK_COUNT_VARIABLES: dict[str, str] = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "PMI_SIZE": "mpirun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
}
"""Where launchers of tasks say how many they started; tasks may be meant to be independent of one another."""
SHUTDOWN_DELAY_SECONDS = 0.3
"""Between the last collective and the end of the process group."""


def check_launch(world_size: int, environment: Mapping[str, str]) -> None:
    """Refuse a launch of several processes that came to fewer, and warn of tasks of which each would train alone.

    Args:
        world_size: how many processes have met.
        environment: of this process, where launchers leave their traces.

    Raises:
        UserError: naming the launcher, both numbers where they are known, and the command that works.
    """
    right = "start them with: torchrun --standalone --nproc_per_node N finetune.py … (several nodes: docs/training.md)"
    asked = environment.get("WORLD_SIZE", "1")
    if asked.isdigit() and int(asked) > world_size:
        raise UserError(f"the launcher started {asked} processes (WORLD_SIZE), but {world_size} met here; {right}")
    if world_size > 1 or "WORLD_SIZE" in environment:
        return
    # accelerate's launcher of a single process sets an address to meet at only where several were asked for.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu or a MULTI_CPU "
            f"configuration file; {right}"
        )
    for name, launcher in TASK_COUNT_VARIABLES.items():
        if environment.get(name, "1") not in ("", "1"):
            logger.warning(
                "%s started %s tasks (%s), each of which trains alone; %s", launcher, environment[name], name, right
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
        state = PartialState(cpu=on_cpu)  # without it, processes on a CPU do not see one another
        return cls(state.process_index, state.num_processes, None if on_cpu else str(state.device))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, on all."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def run_together(self, work: Callable[[], Result], here: bool = True) -> list[Result | None]:
        """Do something on the ranks where ``here`` holds; every rank returns all results, by rank, None elsewhere.

        A rank that is refused something, or whose file system refuses, ends all of them: none waits for it in vain.

        Raises:
            UserError: on every rank, the line of the first that failed. A single process raises what ``work`` does.
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
        told = next((line for _, line in outcomes if line is not None), None)
        if told is not None:
            raise UserError(told) from failure
        return [found for found, _ in outcomes]

    def broadcast_from_first(self, value: Any) -> Any:
        """Rank 0's value, on all."""
        return self.gather(value if self.is_first else None)[0]


def describe_failure(error: UserError | OSError) -> str:
    """What to tell the other processes of a failure: a file system's with the file that it is about."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def shutdown_process_group() -> None:
    """Wait for the other processes at a program's end, if it joined any: one that exits early breaks their connections."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        # gloo's threads let go of the last collective's tensors a moment after it is done. One that does so while the
        # interpreter shuts down ends the process ("terminate called without an active exception", PyTorch issue 190489).
        time.sleep(SHUTDOWN_DELAY_SECONDS)
        distributed.destroy_process_group()
