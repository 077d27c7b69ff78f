"""Some of many rows, drawn so that every language keeps its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from llm_mer.errors import UserError


def shares(counts: dict[str, int], total: int) -> dict[str, int]:
    """How many of ``total`` fall to each group: in proportion to its size, at least one each where ``total`` allows it.

    What proportion leaves over goes to the largest remainders; of equal ones, to the first by name.
    """
    everything = sum(counts.values())
    if total >= everything:
        return dict(counts)
    least = 1 if total >= len(counts) else 0
    exact = {name: total * count / everything for name, count in counts.items()}
    found = {name: max(least, int(exact[name])) for name in counts}
    while sum(found.values()) < total:
        name = min((n for n in counts if found[n] < counts[n]), key=lambda n: (found[n] - exact[n], n))
        found[name] += 1
    while sum(found.values()) > total:  # the ones that small groups got in advance
        name = min((n for n in counts if found[n] > least), key=lambda n: (exact[n] - found[n], n))
        found[name] -= 1
    return found


def draw_rows(rows: Sequence[int], languages: Sequence[str], count: int, seed: int) -> list[int]:
    """``count`` of ``rows`` without repetition, each language in proportion, in the order of ``rows``.

    Args:
        languages: the language of every row of the table, by row. seed: the same seed draws the same rows.

    Raises:
        UserError: a count below 1.
    """
    if count < 1:
        raise UserError(f"limit is {count}; it must be at least 1")
    by_language: dict[str, list[int]] = {}
    for row in rows:
        by_language.setdefault(languages[row], []).append(row)
    wanted = shares({name: len(members) for name, members in sorted(by_language.items())}, count)
    kept: set[int] = set()
    for number, (name, share) in enumerate(wanted.items()):
        random = np.random.default_rng([seed, number])
        kept.update(by_language[name][place] for place in random.permutation(len(by_language[name]))[:share].tolist())
    return [row for row in rows if row in kept]


def describe_draw(rows: Sequence[int], languages: Sequence[str], available: int, seed: int) -> str:
    """``40 of 188 utterances, drawn over languages with seed 0 (20 en, 20 zh)``."""
    counts = Counter(languages[row] for row in rows)
    shown = ", ".join(f"{count} {name or 'of no language'}" for name, count in sorted(counts.items()))
    return f"{len(rows)} of {available} utterances, drawn over languages with seed {seed} ({shown})"
