"""The processes of one job, started by ``torchrun`` or ``accelerate launch``; or just this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the job. Every method is collective: all processes call it."""

    rank: int = 0
    world: int = 1
    device: str | None = None

    @classmethod
    def join(cls) -> Processes:
        """Meet the other processes of the job, where a launcher started several."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch
        from accelerate import PartialState

        alone = not torch.accelerator.is_available()
        state = PartialState(cpu=alone)  # without it, processes on a CPU do not see one another
        return cls(state.process_index, state.num_processes, None if alone else str(state.device))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on all."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def from_first(self, value: Any) -> Any:
        """The first process's value, on all."""
        return self.gather(value if self.first else None)[0]
