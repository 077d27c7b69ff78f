"""Reading CSV rows one at a time; an unclosed quote is an error of its own line and does not swallow further rows."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

DELIMITERS: dict[str, str] = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
"""What may separate the columns of a table; Excel writes semicolons where a comma is the decimal sign."""
MAX_COLUMNS = 10_000
MAX_LINE_LENGTH = 16 << 20
"""Characters per line. The features of a recording in one row take some hundred thousand."""


class _Lines:
    """Physical lines of a file; lines consumed by a malformed row can be pushed back."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        self._stream, self._path = stream, path
        self._pushed_back: deque[str] = deque()
        self.consumed: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._pushed_back.popleft() if self._pushed_back else self._stream.readline(MAX_LINE_LENGTH + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE_LENGTH:
            self.number += 1
            while line and not line.endswith("\n"):
                line = self._stream.readline(MAX_LINE_LENGTH)
            raise UserError(f"{self._path}:{self.number}: the line has more than {MAX_LINE_LENGTH} characters")
        self.consumed.append(line)
        self.number += 1
        return line

    def push_back(self) -> None:
        """Push back all consumed lines but the first."""
        self._pushed_back.extendleft(reversed(self.consumed[1:]))
        self.number -= len(self.consumed) - 1


def detect_delimiter(header: str, path: Path) -> str:
    """What separates the columns: the one of :data:`DELIMITERS` that the header has outside quotes; a comma without any.

    Raises:
        UserError: the header has several of them.
    """
    found = []
    for delimiter in DELIMITERS:
        try:
            found += [delimiter] if len(next(csv.reader([header], delimiter=delimiter), [])) > 1 else []
        except csv.Error:  # told with its line by read_rows
            continue
    if len(found) > 1:
        names = " and ".join(DELIMITERS[delimiter] for delimiter in found)
        raise UserError(
            f"{path}:1: the header has {names} between names; separate columns by one, and quote names that hold one"
        )
    return found[0] if found else ","


def read_rows(stream: IO[str], path: Path, delimiter: str = ",") -> Iterator[tuple[str, list[str] | UserError]]:
    """``(file:line, cells)`` of each row, no cells for an empty line, and an error instead of a row that cannot be read.

    ``line`` is the line on which the row ends. A quote that is not closed, or is followed by text, is reported at its own
    line, and reading continues with the next line. A row is limited to the ``csv`` module's cell size (131072 characters),
    so an unclosed quote never reads a whole file into memory.
    """
    lines = _Lines(stream, path)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        lines.consumed.clear()
        start = f"{path}:{lines.number + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except UserError as error:
            yield start, error
            continue
        except csv.Error as error:
            if len(lines.consumed) > 1 or "end of data" in str(error):
                lines.push_back()
                yield start, UserError(f"{start}: a quote that is opened here is not closed; close it, or double it")
            else:
                yield start, UserError(f"{start}: not CSV: {error}")
            continue
        if _spans_further_rows(cells, delimiter):
            extra_lines = len(lines.consumed) - 1
            lines.push_back()
            yield (
                start,
                UserError(
                    f"{start}: a quote that is opened here is closed {extra_lines} lines further on, with what look like "
                    "rows in between; close it where its text ends, or write the text on one line"
                ),
            )
            continue
        yield f"{path}:{lines.number}", cells


def _spans_further_rows(cells: list[str], delimiter: str) -> bool:
    """Whether a multi-line cell contains a line with as many delimiters as a row."""
    needed = len(cells) - 1
    return needed > 0 and any(
        line.count(delimiter) >= needed for cell in cells if "\n" in cell for line in cell.split("\n")[1:]
    )


def check_columns(columns: Sequence[str], path: Path) -> None:
    """Raises :class:`UserError` for more columns than are read, or a duplicate column."""
    if len(columns) > MAX_COLUMNS:
        raise UserError(f"{path}:1: {len(columns)} columns; at most {MAX_COLUMNS} are read")
    duplicates = [name for name, count in Counter(columns).items() if count > 1]
    if duplicates:
        raise UserError(f"{path}:1: column {quote(duplicates[0])} occurs twice")


def csv_rows(path: Path, columns: Sequence[str], errors: str = "strict") -> Iterator[tuple[str, dict[str, str]]]:
    """``(file:line, row)`` one at a time. ``line`` is the line on which the row ends.

    Raises:
        UserError: the file or a row lacks one of ``columns``, a row has more cells than columns or an unclosed quote, or the
            text is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is a CSV file with the columns {', '.join(columns)}")
    try:
        with path.open(encoding="utf-8-sig", newline="", errors=errors) as stream:
            rows = read_rows(stream, path)
            _, header = next(rows, ("", []))
            if isinstance(header, UserError):
                raise header
            check_columns(header, path)
            missing = [name for name in columns if name not in header]
            if missing:
                names = ", ".join(quote(name, 40)[1:-1] for name in header[:20]) or "nothing"
                raise UserError(f"{path}: no column {', '.join(missing)}; found {names}")
            for where, cells in rows:
                if isinstance(cells, UserError):
                    raise cells
                if not cells:
                    continue
                if len(cells) > len(header):
                    raise UserError(f"{where}: more cells than columns; quote texts that contain a comma")
                row = dict(zip(header, cells, strict=False))
                for name in columns:
                    if name not in row:
                        raise UserError(f"{where}: the row ends before column {name}")
                yield where, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
