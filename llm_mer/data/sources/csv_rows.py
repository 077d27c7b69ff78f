"""CSV rows one at a time, none of them lost in another: an open quote is an error of its own line alone."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

MAX_COLUMNS = 10_000
MAX_LINE_LENGTH = 16 << 20
"""Characters of a line. Features of a recording in one row come to some hundred thousand."""


class _Lines:
    """Physical lines of a file; those a broken row has swallowed can be given back."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self._stream, self._path = stream, path
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._stream.readline(MAX_LINE_LENGTH + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE_LENGTH:
            self.number += 1
            while line and not line.endswith("\n"):
                line = self._stream.readline(MAX_LINE_LENGTH)
            raise UserError(f"{self._path}:{self.number}: the line has more than {MAX_LINE_LENGTH} characters")
        self.taken.append(line)
        self.number += 1
        return line

    def give_back(self) -> None:
        """All lines taken but the first come again."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def read_rows(stream: IO[str], path: Path) -> Iterator[tuple[str, list[str] | UserError]]:
    """``(file:line, cells)`` of each row, no cells for an empty line; an error in their place where a row cannot be read.

    ``line`` is that on which the row ends. A quote that is not closed, or has text after it, is reported at the line it
    stands in, and reading goes on with the next line: the rows after it are read. A row is at most as long as the ``csv``
    module lets a cell be (131072 characters), so no open quote takes a whole file into memory.
    """
    lines = _Lines(stream, path)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.taken.clear()
        start = f"{path}:{lines.number + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except UserError as error:
            yield start, error
            continue
        except csv.Error as error:
            if len(lines.taken) > 1 or "end of data" in str(error):
                lines.give_back()
                yield start, UserError(f"{start}: a quote that is opened here is not closed; close it, or write it twice")
            else:
                yield start, UserError(f"{start}: not CSV: {error}")
            continue
        if _swallows(cells):
            further = len(lines.taken) - 1
            lines.give_back()
            yield (
                start,
                UserError(
                    f"{start}: a quote that is opened here is closed {further} lines further on, with what look like rows "
                    "in between; close it where its text ends, or write the text on one line"
                ),
            )
            continue
        yield f"{path}:{lines.number}", cells


def _swallows(cells: list[str]) -> bool:
    """Whether a cell of more than one line holds a line with as many commas as a row has."""
    commas = len(cells) - 1
    return commas > 0 and any(line.count(",") >= commas for cell in cells if "\n" in cell for line in cell.split("\n")[1:])


def check_columns(columns: Sequence[str], path: Path) -> None:
    """Raises :class:`UserError` for more columns than are read, or one that occurs twice."""
    if len(columns) > MAX_COLUMNS:
        raise UserError(f"{path}:1: {len(columns)} columns; at most {MAX_COLUMNS} are read")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}:1: column {quote(twice[0])} occurs twice")


def csv_rows(path: Path, columns: Sequence[str], errors: str = "strict") -> Iterator[tuple[str, dict[str, str]]]:
    """``(file:line, row)`` one at a time. ``line`` is that on which the row ends.

    Raises:
        UserError: the file lacks one of ``columns``, a row is short of one, has more cells than there are columns or an open
            quote, or the text is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is a CSV file with the columns {', '.join(columns)}")
    try:
        with path.open(encoding="utf-8-sig", newline="", errors=errors) as stream:
            rows = read_rows(stream, path)
            _, head = next(rows, ("", []))
            if isinstance(head, UserError):
                raise head
            check_columns(head, path)
            missing = [name for name in columns if name not in head]
            if missing:
                names = ", ".join(quote(name, 40)[1:-1] for name in head[:20]) or "nothing"
                raise UserError(f"{path}: no column {', '.join(missing)}; found {names}")
            for where, cells in rows:
                if isinstance(cells, UserError):
                    raise cells
                if not cells:
                    continue
                if len(cells) > len(head):
                    raise UserError(f"{where}: more cells than columns; quote a text that holds a comma")
                row = dict(zip(head, cells, strict=False))
                for name in columns:
                    if name not in row:
                        raise UserError(f"{where}: the row ends before column {name}")
                yield where, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
