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
from llm_mer.training.atomic_checkpoints import describe_last_checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(UserError):
    """Training was stopped by a signal; the message names the checkpoint to resume from."""

    exit_code = 1


class SignalCallback(TrainerCallback):
    """Ends training on SIGTERM or Ctrl-C.

    A single process finishes its step, saves and raises :class:`Interrupted`; a second signal ends it at once. Several
    processes do not receive a signal in the same step, and saving is collective: there each stops at once, and the first
    names the last complete checkpoint.
    """

    def __init__(self, output: Path, rank: int, world: int) -> None:
        self.output, self.rank, self.world = output, rank, world
        self.received: str | None = None

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """A context in which this callback handles the signals. Does nothing outside a program's main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self.world == 1:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if self.rank == 0:
            print(
                f"finetune.py: stopped by {self.received}; {describe_last_checkpoint(self.output)}",
                file=sys.stderr,
                flush=True,
            )
        # No clean-up: it would wait in collective calls for processes that have ended.
        os._exit(1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received and state.epoch % 1:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # After the epoch's evaluation, which a run resumed from the last step would not repeat.
        if self.received:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received:
            raise Interrupted(
                f"stopped by {self.received} after step {state.global_step}; {describe_last_checkpoint(self.output)}"
            )
