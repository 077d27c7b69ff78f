"""Messages of libraries that are irrelevant to users of this program, each with the version it was seen in.

Messages not listed here are shown. Only the programs hide messages, not the package used as a library.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class LogMessage:
    """A log message, identified by its prefix.

    Attributes:
        logger: name of its logger. prefix: the message's first words.
        seen_in: library and version. why: why it can be hidden.
    """

    logger: str
    prefix: str
    seen_in: str
    why: str


HIDDEN_LOG_MESSAGES: tuple[LogMessage, ...] = (
    LogMessage(
        "DeepSpeed",
        "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.",
        "deepspeed 0.19.8",
        "imported because it is installed, not because it was requested; this program reports its own device",
    ),
    LogMessage(
        "transformers.trainer",
        "The best checkpoint checkpoint-",
        "transformers 5.23",
        "trainer_state.json names it without a folder; training/state_file.py finds it again, or refuses to go on",
    ),
)

PROGRESS_BAR_OPT_OUT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # downloads, and transformers 5.23: "Loading weights", "Writing model shards"
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # datasets 5.2
}
"""Environment variables that switch off the progress bars of libraries; read on import."""


class _PrefixFilter(logging.Filter):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.prefix)


def hide_library_messages() -> None:
    """Hide :data:`HIDDEN_LOG_MESSAGES`, and progress bars without a terminal. Variables set by the user are kept."""
    for message in HIDDEN_LOG_MESSAGES:
        logger = logging.getLogger(message.logger)
        if not any(isinstance(found, _PrefixFilter) and found.prefix == message.prefix for found in logger.filters):
            logger.addFilter(_PrefixFilter(message.prefix))
    if not sys.stderr.isatty():
        for name, value in PROGRESS_BAR_OPT_OUT.items():
            os.environ.setdefault(name, value)
