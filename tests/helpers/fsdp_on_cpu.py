"""``finetune.py`` under FSDP on a CPU, for tests: accelerate is told that processes on a CPU may shard, as those on GPUs do.

Started as ``torchrun … fsdp_on_cpu.py CONFIG [option …]`` with an accelerate configuration file, whose settings become the
environment that ``accelerate launch`` would make of them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env


def environment_of(config: str) -> dict[str, str]:
    """The variables that ``accelerate launch --config_file`` would set, but those by which processes meet."""
    asked = launch_command_parser().parse_args(["--config_file", config, "finetune.py"])
    asked, *_ = _validate_launch_command(asked)
    made: dict[str, str] = prepare_multi_gpu_env(asked)
    return {name: value for name, value in made.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def let_a_cpu_shard() -> None:
    """accelerate makes FSDP of several GPUs alone; from now on of several CPU processes too."""
    begin = AcceleratorState.__init__

    def with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type is not DistributedType.MULTI_CPU:
            return
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = with_fsdp


if __name__ == "__main__":
    os.environ.update(environment_of(sys.argv[1]))
    let_a_cpu_shard()
    from llm_mer.cli.entry_point import run_program
    from llm_mer.cli.train import finetune

    sys.exit(run_program("finetune.py", lambda: [finetune(sys.argv[2:]), 0][1]))
