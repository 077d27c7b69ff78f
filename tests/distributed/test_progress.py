"""Progress in a log is a line now and then; a short loop writes none."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from transformers import ProgressCallback

from llm_mer.distributed.progress import ProgressLog, format_duration, track_progress
from llm_mer.training.progress import ProgressLogCallback, log_progress_without_terminal


class Clock:
    """Seconds that the test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, "llm_mer")
    return Clock()


def test_a_loop_of_less_than_half_a_minute_writes_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in ProgressLog(range(1000), description="extract", unit="clip", clock=clock):
        clock.seconds += 0.029
    assert caplog.messages == []


def test_a_line_says_count_share_time_spent_and_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = ProgressLog(description="extract", unit="clip", total=110, initial=10, clock=clock)
    clock.seconds = 50.0
    progress.set_postfix(loss="1.20")
    progress.update(25)
    assert caplog.messages == ["extract: 35/110 clips (32 %), 50 s spent, about 2 min 30 s left, loss 1.20"]


def test_lines_come_every_half_minute_then_less_often_and_the_last_at_the_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with ProgressLog(description="train", unit="step", total=36_001, clock=clock) as progress:
        for _ in range(36_001):  # ten hours of one second steps
            clock.seconds += 1
            progress.update()
    counts = [int(message.split()[1].partition("/")[0]) for message in caplog.messages]
    assert counts[:3] == [30, 60, 90]
    assert counts[-1] == 36_001
    assert len(counts) < 80


def test_without_a_terminal_progress_is_logged_and_with_one_it_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    assert isinstance(track_progress(description="x"), ProgressLog)
    assert isinstance(track_progress(description="x", hidden=True), tqdm)
    monkeypatch.undo()
    monkeypatch.setattr("llm_mer.distributed.progress.has_terminal", lambda: True)
    bar = track_progress([1, 2], description="x")
    assert isinstance(bar, tqdm)
    bar.close()


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("terminal", "disabled", "replaced"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_the_trainers_bar_is_replaced_where_there_is_no_terminal(
    terminal: bool, disabled: bool, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_mer.training.progress.has_terminal", lambda: terminal)
    removed, added = [], []
    trainer = SimpleNamespace(
        args=SimpleNamespace(disable_tqdm=disabled), remove_callback=removed.append, add_callback=added.append
    )
    log_progress_without_terminal(trainer)  # type: ignore[arg-type]
    assert (removed == [ProgressCallback]) is replaced
    assert [type(callback) for callback in added] == ([ProgressLogCallback] if replaced else [])
