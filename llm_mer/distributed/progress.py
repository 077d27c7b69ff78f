"""Progress of a long loop: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Protocol, Self, cast

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
GROWTH = 0.1
"""A line comes after ``SECONDS_BETWEEN_LINES``, or this share of the time spent so far if that is longer: 10 lines in the
first 5 minutes, some 25 more in the first hour, 25 more in the next 10 hours."""


class Progress(Protocol):
    """Progress of a loop; also an iterable and a context manager. The methods are those of a tqdm bar."""

    def update(self, n: int = 1, /) -> Any:
        """Advance by ``n`` items."""

    def set_postfix(self, **values: Any) -> None:
        """Show these values beside the count."""

    def close(self) -> None:
        """The loop has ended."""

    def __iter__(self) -> Iterator[Any]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any: ...


class ProgressLog:
    """Progress as log lines; a loop shorter than :data:`SECONDS_BETWEEN_LINES` writes none.

    Args:
        iterable: what is looped over, if anything.
        total: number of items, if known. initial: number of items done before.
        description: start of each line. unit: singular name of an item.
        clock: seconds since any fixed point.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        description: str,
        unit: str = "item",
        total: int | None = None,
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.iterable, self.description, self.unit = iterable, description, unit
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.initial = self.done = initial
        self.clock, self.started = clock, clock()
        self.next_line = SECONDS_BETWEEN_LINES
        self.written_lines = 0
        self.values: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable or ():
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()

    def update(self, n: int = 1) -> None:
        """Count, and write a line when one is due."""
        self.done += n
        seconds = self.clock() - self.started
        if seconds >= self.next_line:
            self._write(seconds)
            self.next_line = seconds + max(SECONDS_BETWEEN_LINES, GROWTH * seconds)

    def set_postfix(self, **values: Any) -> None:
        """Show these values in the next line."""
        self.values = values

    def close(self) -> None:
        """Write a last line, if there were others and it would differ from the last one."""
        if self.written_lines and self.done != self.last_written:
            self._write(self.clock() - self.started)

    def _write(self, seconds: float) -> None:
        parts = [f"{self.description}: {self.done}"]
        if self.total:
            parts[0] += f"/{self.total}"
        parts[0] += f" {self.unit}s"
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.0f} %)"
        parts.append(f"{format_duration(seconds)} spent")
        new = self.done - self.initial
        if self.total and new > 0 and self.done < self.total:
            parts.append(f"about {format_duration(seconds / new * (self.total - self.done))} left")
        parts += [f"{name} {value}" for name, value in self.values.items()]
        logger.info(", ".join(parts))
        self.written_lines, self.last_written = self.written_lines + 1, self.done


def format_duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def has_terminal() -> bool:
    """Whether standard error is a terminal, where a bar can be drawn over itself."""
    return sys.stderr.isatty()


def track_progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    unit: str = "item",
    total: int | None = None,
    initial: int = 0,
    hidden: bool = False,
    keep: bool = True,
) -> Progress:
    """A tqdm bar on a terminal, else a :class:`ProgressLog`.

    Args:
        iterable, description, unit, total, initial: as of :class:`ProgressLog`.
        hidden: show nothing. keep: leave the finished bar on the terminal.
    """
    if hidden or has_terminal():
        from tqdm import tqdm

        bar = tqdm(iterable, desc=description, unit=f" {unit}s", total=total, initial=initial, disable=hidden, leave=keep)
        return cast(Progress, bar)
    return ProgressLog(iterable, description=description, unit=unit, total=total, initial=initial)


def write_line(text: str) -> None:
    """Print a line on standard output, above any progress bars."""
    if has_terminal():
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text)
