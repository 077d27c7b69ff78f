"""Checks of a task as its file describes it: words that can be answered and read back, labels that mean one class each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.text_forms import find_lookalikes
from llm_mer.storage.quoting import quote

KEYS_OF_KIND: dict[str, tuple[str, ...]] = {
    "classification": ("labels", "aliases", "ignored"),
    "regression": ("range", "decimals"),
}
"""Keys that only one kind of task has."""
MAX_SCORES = 10_001
"""Admissible scores of a task: each of them is scored for every utterance."""


def require_text(value: Any, where: str) -> str:
    """Return ``value`` if it is a text that can stand in a prompt, an answer and a table.

    Raises:
        UserError: what YAML reads otherwise (``no`` is false), a blank text, white space around it, or a line end in it.
    """
    if not isinstance(value, str):
        raise UserError(f'{where}: {quote(value)} is read as a {type(value).__name__}; put words in quotes: "no", "1"')
    if not value or value != value.strip() or not value.isprintable():
        raise UserError(f"{where}: {quote(value)} is blank, has white space around it, or holds a character with no glyph")
    return value


def check_keys(entry: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises :class:`UserError` for a key that has a meaning for the other kind of task alone: it would have no effect."""
    for other, keys in KEYS_OF_KIND.items():
        if other != kind and (misplaced := [key for key in keys if entry.get(key)]):
            raise UserError(f"{where} is {kind}; only a {other} task has {', '.join(misplaced)}")


def check_words(names: Iterable[str], words: Mapping[str, Iterable[str]], where: str) -> None:
    """Check that no two labels of a task look alike, by name or in any language.

    Args:
        words: of each language, in the order of the labels.

    Raises:
        UserError: names or words that are the same but for letter case, width or Unicode form, or another language.
    """
    if not words or not set(words) <= set(LANGUAGES):
        found = ", ".join(map(repr, words)) or "none"
        raise UserError(f"{where} has words in languages {found}; a label is {{name: …, en: …, zh: …}}, in one or both")
    if (pair := find_lookalikes(names, fold_case=True)) is not None:
        raise UserError(f"{where} has labels {pair[0]!r} and {pair[1]!r}, which differ in letter case or form alone")
    for language, spoken in words.items():
        if (pair := find_lookalikes(spoken, fold_case=True)) is not None:
            raise UserError(
                f"{where} has words {pair[0]!r} and {pair[1]!r} of language {language!r}, which differ in letter case or "
                "form alone"
            )


def check_spellings(spellings: Iterable[tuple[str, str, str]], where: str) -> None:
    """Check that data can name a label in one way only: what is one label's name must not be another's word or alias.

    Args:
        spellings: ``(spelling, label, what it is)``.

    Raises:
        UserError: naming both labels.
    """
    known: dict[str, tuple[str, str]] = {}
    for spelling, label, kind in spellings:
        first, first_kind = known.setdefault(spelling, (label, kind))
        if first != label:
            raise UserError(
                f"{where}: {spelling!r} in the data would be two labels: it is {first_kind} of {first!r} and {kind} of "
                f"{label!r}"
            )


def read_range(bounds: Any, decimals: Any, where: str) -> tuple[float, float]:
    """The ends of a score range.

    Raises:
        UserError: no two numbers in rising order, decimals that do not hold them, or more scores than can be answered.
    """
    numbers = [b for b in bounds if isinstance(b, int | float) and not isinstance(b, bool)] if _is_pair(bounds) else []
    low, high = (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else (0.0, 0.0)
    if not -float("inf") < low < high < float("inf"):
        raise UserError(f"{where} needs range: [low, high] with low < high, found {bounds!r}")
    if not isinstance(decimals, int) or isinstance(decimals, bool) or not 0 <= decimals <= 4:
        raise UserError(f"{where} has decimals {decimals!r}; it must be a whole number from 0 to 4")
    if any(round(bound, decimals) != bound for bound in (low, high)):
        raise UserError(f"{where}: range {bounds!r} has more than its {decimals} decimals")
    if max(abs(low), abs(high)) * 10**decimals >= 2**53:
        raise UserError(f"{where}: range {bounds!r} with {decimals} decimals has more digits than a number holds")
    count = round((high - low) * 10**decimals) + 1
    if count > MAX_SCORES:
        raise UserError(
            f"{where}: range {bounds!r} with {decimals} decimals has {count} answers; at most {MAX_SCORES} can be scored: "
            "take fewer decimals, or another unit"
        )
    return low, high


def _is_pair(bounds: Any) -> bool:
    return isinstance(bounds, list | tuple) and len(bounds) == 2
