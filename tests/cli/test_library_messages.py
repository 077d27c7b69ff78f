"""Only listed messages of other libraries are hidden."""

import logging
import warnings
from pathlib import Path

import pytest

from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.cli.library_messages import HIDDEN_LOG_MESSAGES, PROGRESS_BAR_OPT_OUT, hide_library_messages


@pytest.mark.parametrize("message", HIDDEN_LOG_MESSAGES, ids=lambda message: message.seen_in)
def test_a_listed_message_is_hidden_and_any_other_of_its_logger_is_shown(message) -> None:
    logger, shown = logging.getLogger(message.logger), []
    before, handlers, propagates = list(logger.filters), list(logger.handlers), logger.propagate
    listener = logging.Handler()
    listener.emit = lambda record: shown.append(record.getMessage())
    logger.handlers, logger.propagate = [listener], False  # alone, whatever the library or another test has put there
    try:
        hide_library_messages()
        hide_library_messages()
        assert len(logger.filters) - len(before) <= 1
        logger.warning(message.prefix)
        logger.warning("out of memory")
        assert shown == ["out of memory"]
    finally:
        logger.filters, logger.handlers, logger.propagate = before, handlers, propagates


def test_bars_go_without_a_terminal_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in PROGRESS_BAR_OPT_OUT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    hide_library_messages()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    hide_library_messages()
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ


def test_a_checkpoint_is_loaded_without_a_warning(trained: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(trained)
