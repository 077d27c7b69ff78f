"""Drawing a subset of rows in which every language keeps its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from llm_mer.errors import UserError


def proportional_shares(counts: dict[str, int], total: int) -> dict[str, int]:
    """Allocate ``total`` to groups in proportion to their sizes, at least one each if ``total`` allows it.

    Remaining places go to the largest remainders; ties, to the first by name.
    """
    available_total = sum(counts.values())
    if total >= available_total:
        return dict(counts)
    minimum = 1 if total >= len(counts) else 0
    exact = {name: total * count / available_total for name, count in counts.items()}
    allocated = {name: max(minimum, int(exact[name])) for name in counts}
    while sum(allocated.values()) < total:
        name = min((n for n in counts if allocated[n] < counts[n]), key=lambda n: (allocated[n] - exact[n], n))
        allocated[name] += 1
    while sum(allocated.values()) > total:  # compensates for the minimum of one that small groups got
        name = min((n for n in counts if allocated[n] > minimum), key=lambda n: (exact[n] - allocated[n], n))
        allocated[name] -= 1
    return allocated


def draw_rows(rows: Sequence[int], languages: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw ``count`` of ``rows`` without replacement, proportionally over languages, in the order of ``rows``.

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
    shares = proportional_shares({name: len(members) for name, members in sorted(by_language.items())}, count)
    kept: set[int] = set()
    for number, (name, share) in enumerate(shares.items()):
        generator = np.random.default_rng([seed, number])
        kept.update(by_language[name][index] for index in generator.permutation(len(by_language[name]))[:share].tolist())
    return [row for row in rows if row in kept]


def describe_draw(rows: Sequence[int], languages: Sequence[str], available: int, seed: int) -> str:
    """``40 of 188 utterances, drawn over languages with seed 0 (20 en, 20 zh)``."""
    counts = Counter(languages[row] for row in rows)
    shown = ", ".join(f"{count} {name or 'without language'}" for name, count in sorted(counts.items()))
    return f"{len(rows)} of {available} utterances, drawn over languages with seed {seed} ({shown})"
