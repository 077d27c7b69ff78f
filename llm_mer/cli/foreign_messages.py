"""Messages of other libraries that say nothing to a user of this program: each named, with the version it was seen in.

What is not listed here is shown. As a library this package hides nothing; only its programs do.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class LogMessage:
    """A log message by how it begins.

    Attributes:
        logger: its logger's name. begins: the message's first words.
        seen_in: library and version. why: why it can be left out.
    """

    logger: str
    begins: str
    seen_in: str
    why: str


LOG_MESSAGES: tuple[LogMessage, ...] = (
    LogMessage(
        "DeepSpeed",
        "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.",
        "deepspeed 0.19.8",
        "imported because it is installed, not because it was asked for; this program says itself what it runs on",
    ),
)

WITHOUT_A_TERMINAL = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # downloads, and transformers 5.23: "Loading weights", "Writing model shards"
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # datasets 5.2
}
"""Environment variables that switch off other libraries' bars; read when these are imported."""


class _Hides(logging.Filter):
    def __init__(self, begins: str) -> None:
        super().__init__()
        self.begins = begins

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.begins)


def hide_foreign_messages() -> None:
    """Hide :data:`LOG_MESSAGES`, and bars where standard error is no terminal. A variable that the user set is kept."""
    for message in LOG_MESSAGES:
        logger = logging.getLogger(message.logger)
        if not any(isinstance(found, _Hides) and found.begins == message.begins for found in logger.filters):
            logger.addFilter(_Hides(message.begins))
    if not sys.stderr.isatty():
        for name, value in WITHOUT_A_TERMINAL.items():
            os.environ.setdefault(name, value)
