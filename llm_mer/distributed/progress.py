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
    """What a loop tells of itself; also an iterable and a context manager. The methods are those of a tqdm bar."""

    def update(self, n: int = 1, /) -> Any:
        """So many more are done."""

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
    """Progress as log lines, of which a loop of less than :data:`SECONDS_BETWEEN_LINES` writes none.

    Args:
        iterable: what is looped over, if anything is.
        total: how many there are, where it is known. initial: how many were done before.
        description: begins each line. unit: what is counted, one of them.
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
        self.clock, self.began = clock, clock()
        self.next_line = SECONDS_BETWEEN_LINES
        self.lines = 0
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
        seconds = self.clock() - self.began
        if seconds >= self.next_line:
            self._write(seconds)
            self.next_line = seconds + max(SECONDS_BETWEEN_LINES, GROWTH * seconds)

    def set_postfix(self, **values: Any) -> None:
        """Show these values in the next line."""
        self.values = values

    def close(self) -> None:
        """The last line, where there were others and this is not the same."""
        if self.lines and self.done != self.written:
            self._write(self.clock() - self.began)

    def _write(self, seconds: float) -> None:
        parts = [f"{self.description}: {self.done}"]
        if self.total:
            parts[0] += f"/{self.total}"
        parts[0] += f" {self.unit}s"
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.0f} %)"
        parts.append(f"{duration(seconds)} spent")
        new = self.done - self.initial
        if self.total and new > 0 and self.done < self.total:
            parts.append(f"about {duration(seconds / new * (self.total - self.done))} left")
        parts += [f"{name} {value}" for name, value in self.values.items()]
        logger.info(", ".join(parts))
        self.lines, self.written = self.lines + 1, self.done


def duration(seconds: float) -> str:
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
        hidden: show nothing anywhere. keep: leave the finished bar on the terminal.
    """
    if hidden or has_terminal():
        from tqdm import tqdm

        bar = tqdm(iterable, desc=description, unit=f" {unit}s", total=total, initial=initial, disable=hidden, leave=keep)
        return cast(Progress, bar)
    return ProgressLog(iterable, description=description, unit=unit, total=total, initial=initial)


def write_line(text: str) -> None:
    """A line on standard output, above the bars of a terminal."""
    if has_terminal():
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text)
