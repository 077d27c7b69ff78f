"""The lock of an output that several processes of one job write together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.storage.locks import lock_output


@contextmanager
def lock_outputs(targets: Sequence[Path], processes: ProcessGroup) -> Iterator[None]:
    """Hold the locks of these outputs for the whole job: rank 0 acquires them, and if it fails every rank raises.

    Collective on entry of the block, not on exit.

    Raises:
        UserError: on every rank, as :func:`~llm_mer.storage.locks.lock_output`.
    """
    with ExitStack() as held:

        def lock_all() -> None:
            for target in targets:
                held.enter_context(lock_output(target))

        processes.run_together(lock_all, processes.is_first)
        yield
