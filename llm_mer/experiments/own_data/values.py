"""What the values of a column are: scores, labels, or something that cannot be learnt; or that its owner must decide."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from llm_mer.data.sources.numbers import parse_number
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.table import Cell
from llm_mer.prompting.text_forms import compose, find_lookalikes
from llm_mer.storage.quoting import quote

MAX_CLASSES = 20
"""Different texts of a column of labels, unless it is named with ``--classes``."""
ROWS_PER_CLASS = 3
"""Rows that each label needs on average: one for each split."""
MAX_LABEL_LENGTH = 40
NUMBERED_CLASSES = 10
"""Up to so many different whole numbers may be scores or numbered classes."""
MAX_ANSWERS = 201
"""Answers of a score: so many steps from the lower to the upper end."""
LEADING_DIGITS = (1, 2, 3, 5, 10)
DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
"""What is one thousand and more to some, and a number with three decimals to others."""
PERCENT = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?\s*%")
UNKNOWN = frozenset(("na", "n/a", "#n/a", "nan", "null", "-", "?", "inf", "-inf"))
"""Texts that stand for a value that is not known."""
SEVERAL = re.compile(r"\s*[;|,/+]\s*")


@dataclass(frozen=True)
class Scores:
    """A column of numbers: its range, the decimals of an answer, and what was observed."""

    low: float
    high: float
    decimals: int
    observed: tuple[float, float]


@dataclass(frozen=True)
class Classes:
    """A column of labels, in the order of their first row, with how often each stands."""

    counts: dict[str, int]


@dataclass(frozen=True)
class Neither:
    """A column that is not learnt, and why."""

    reason: str


def classify_column(name: str, cells: Sequence[Cell]) -> Scores | Classes | Neither:
    """What a column is by its values alone.

    Raises:
        UserError: values that can be read in two ways, naming the first one's row and the option that decides.
    """
    texts = [cell.text for cell in cells]
    _check_known(name, cells)
    if all(parse_number(text) is not None for text in texts):
        return _classify_numbers(name, cells)
    distinct = list(dict.fromkeys(map(compose, texts)))
    _check_mixed(name, cells)
    if len(distinct) == 1:
        return Neither(f"every row says {quote(distinct[0])}")
    if max(map(len, distinct)) > MAX_LABEL_LENGTH:
        return Neither("texts too long to be labels")
    _check_single_labels(name, cells)
    if len(distinct) > MAX_CLASSES or len(texts) < ROWS_PER_CLASS * len(distinct):
        return Neither(f"{len(distinct)} different texts in {len(texts)} rows")
    return as_classes(name, cells)


def as_classes(name: str, cells: Sequence[Cell]) -> Classes:
    """The labels of a column.

    Raises:
        UserError: two spellings of one label, a text that says it is not known, or fewer than two labels.
    """
    _check_known(name, cells)
    texts = [compose(_label_text(cell)) for cell in cells]
    counts = Counter(texts)
    pair = find_lookalikes(counts, fold_case=True)
    if pair is not None:
        first, second = (next(c.where for c, text in zip(cells, texts, strict=True) if text == label) for label in pair)
        raise UserError(
            f"{second}: column {name!r} is {pair[1]!r}, and {pair[0]!r} at {first}: one label in two spellings? write it in "
            "one way"
        )
    if len(counts) < 2:
        raise UserError(
            f"{cells[0].where}: column {name!r} has the value {texts[0]!r} alone; a task tells at least two apart"
        )
    return Classes({label: counts[label] for label in dict.fromkeys(texts)})


def as_scores(name: str, cells: Sequence[Cell], bounds: tuple[float, float] | None = None) -> Scores:
    """The scores of a column: in the range given, else in the observed one widened to round numbers.

    The range is from 0, or from the negative of its upper end where a number is below 0; the upper end is the next of 1, 2,
    3, 5 and 10 times a power of ten. Answers have as many decimals as the numbers, at most such that they are
    :data:`MAX_ANSWERS`.

    Raises:
        UserError: a value that is not a finite number, or lies outside the range given.
    """
    _check_known(name, cells)
    numbers = []
    for cell in cells:
        number = parse_number(cell.value)
        if number is None or not math.isfinite(number):
            _refuse_number(name, cell)
        numbers.append(float(number))  # type: ignore[arg-type]  # refused above
    observed = min(numbers), max(numbers)
    low, high = widen(*observed) if bounds is None else bounds
    outside = next((c for c, n in zip(cells, numbers, strict=True) if not low <= n <= high), None)
    if outside is not None:
        raise UserError(
            f"{outside.where}: column {name!r} is {quote(outside.value)}, outside --range {name}={low:g}:{high:g}"
        )
    written = max(map(_decimals, [cell.text for cell in cells]))
    needed = max(_decimals(f"{low:g}"), _decimals(f"{high:g}"))
    decimals = min(written, 4)
    while decimals > needed and (high - low) * 10**decimals >= MAX_ANSWERS:
        decimals -= 1
    return Scores(low, high, max(decimals, needed), observed)


def widen(low: float, high: float) -> tuple[float, float]:
    """The round range about observed numbers: ``(12, 88)`` → ``(0, 100)``, ``(-2.2, 1)`` → ``(-3, 3)``."""
    extent = Decimal(repr(max(abs(low), abs(high)))) or Decimal(1)
    power = Decimal(10) ** (extent.adjusted())
    end = float(next(digit * power for digit in LEADING_DIGITS if digit * power >= extent))
    return (-end if low < 0 else 0.0), end


def _classify_numbers(name: str, cells: Sequence[Cell]) -> Scores | Classes | Neither:
    numbers = [parse_number(cell.text) for cell in cells]
    whole = [int(n) for n in numbers if n is not None and n.is_integer()]
    distinct = sorted(set(whole))
    if len(set(numbers)) == 1:
        return Neither(f"every row says {cells[0].text}")
    if len(whole) == len(numbers):
        if len(distinct) == len(whole) > NUMBERED_CLASSES and distinct[-1] - distinct[0] == len(whole) - 1:
            return Neither(f"it numbers the rows from {distinct[0]} to {distinct[-1]}")
        if len(distinct) <= NUMBERED_CLASSES:
            shown = ", ".join(map(str, distinct))
            low, high = widen(distinct[0], distinct[-1])
            raise UserError(
                f"{cells[0].where}: column {name!r} has the numbers {shown}: scores, or numbered classes? say --range "
                f"{name}={low:g}:{high:g} (or the scale they are on), or --classes {name}"
            )
    return as_scores(name, cells)


def _check_known(name: str, cells: Sequence[Cell]) -> None:
    """Raises :class:`UserError` for lists, truth values and texts that stand for a value that is not known."""
    for cell in cells:
        if isinstance(cell.value, bool | list | dict):
            raise UserError(
                f"{cell.where}: column {name!r} is {quote(cell.value)}; a task has one label or number a clip (tasks of "
                "several labels are not supported): one column for each, or --targets with the columns to learn"
            )
        if cell.text.casefold() in UNKNOWN:
            raise UserError(
                f"{cell.where}: column {name!r} is {quote(cell.value)}; leave the cell empty where it is not known"
            )


def _check_mixed(name: str, cells: Sequence[Cell]) -> None:
    """Raises :class:`UserError` for a column of numbers in which some are none, as Excel writes them or by mistake."""
    for cell in cells:
        if DECIMAL_COMMA.fullmatch(cell.text) or PERCENT.fullmatch(cell.text):
            _refuse_number(name, cell)
    odd = [cell for cell in cells if parse_number(cell.text) is None]
    if 2 * len(odd) <= len(cells):
        raise UserError(
            f"{odd[0].where}: column {name!r} is {quote(odd[0].value)}, and a number in {len(cells) - len(odd)} of "
            f"{len(cells)} rows; write numbers alone, empty cells where none is known, or say --classes {name}"
        )


def _refuse_number(name: str, cell: Cell) -> None:
    remedy = "a number is written with a point and without a unit"
    if DECIMAL_COMMA.fullmatch(cell.text):
        remedy = f"a decimal comma is not read: write {cell.text.replace(',', '.')}"
        if THOUSANDS.fullmatch(cell.text):
            remedy = (
                f"a comma is not read: write {cell.text.replace(',', '')} if it parts thousands, "
                f"{cell.text.replace(',', '.')} if decimals"
            )
    elif PERCENT.fullmatch(cell.text):
        remedy = f"write {cell.text.rstrip('% ').replace(',', '.')} without the sign"
    raise UserError(f"{cell.where}: column {name!r} is {quote(cell.value)}; {remedy}")


def _check_single_labels(name: str, cells: Sequence[Cell]) -> None:
    """Raises :class:`UserError` where cells hold several labels each, which come again in other cells."""
    parts = [part for cell in cells for part in SEVERAL.split(cell.text)]
    joined = next((cell for cell in cells if len(SEVERAL.split(cell.text)) > 1), None)
    if joined is None or len(set(parts)) > MAX_CLASSES or len(parts) < ROWS_PER_CLASS * len(set(parts)):
        return
    whole = {cell.text for cell in cells}
    if len(set(parts)) < len(whole):
        raise UserError(
            f"{joined.where}: column {name!r} is {quote(joined.value)}, several labels; and a task has one label a "
            f"clip (tasks of several labels are not supported): make a column for each label, say --targets with other "
            f"columns, or --classes {name} if this is one label"
        )


def _label_text(cell: Cell) -> str:
    """A label as a task file may write it: 1 where a table has 1 or 1.0."""
    number = parse_number(cell.value)
    return str(int(number)) if number is not None and number.is_integer() else cell.text


def _decimals(text: str) -> int:
    """Digits behind the point, trailing zeros left out."""
    exponent = Decimal(text.strip()).normalize().as_tuple().exponent
    return max(0, -int(exponent))


def file_name(name: str) -> str:
    """A column's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or Path("task").name
