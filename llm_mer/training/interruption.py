"""SIGTERM and Ctrl-C during training: a last checkpoint on one process, and always one line instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from llm_mer.errors import UserError
from llm_mer.training.atomic_checkpoints import describe_last

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(UserError):
    """Training was told to stop; the message says where it can go on from."""


class Interruption(TrainerCallback):
    """Ends training on a signal.

    One process finishes its step, saves and raises :class:`Interrupted`; a second signal ends it at once.
    Several processes do not get a signal in the same step, and saving is collective: there each stops at once, and the
    first says which checkpoint is whole.
    """

    def __init__(self, output: Path, rank: int, world: int) -> None:
        self.output, self.rank, self.world = output, rank, world
        self.told: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the signals are ours. Only a program's main thread can take them; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.told = signal.Signals(number).name
        if self.world == 1:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if self.rank == 0:
            print(f"finetune.py: stopped by {self.told}; {describe_last(self.output)}", file=sys.stderr, flush=True)
        # No unwinding: it would wait in collectives for processes that are gone.
        os._exit(1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.told and state.epoch % 1:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # After the epoch's evaluation, which a run resumed from the last step would not make.
        if self.told:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.told:
            raise Interrupted(f"stopped by {self.told} after step {state.global_step}; {describe_last(self.output)}")
