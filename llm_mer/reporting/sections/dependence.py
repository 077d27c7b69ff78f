"""What the answers depend on: words, sound and face, by what swapping each of them does."""

from __future__ import annotations

from llm_mer.evaluation.dependence import NOTICEABLE, Share
from llm_mer.reporting.blocks import Cell, Remark, Section, Table
from llm_mer.reporting.facts import Loaded
from llm_mer.reporting.wording import format_interval, format_number


def share_cell(share: Share) -> Cell:
    """A mean and its interval."""
    return Cell(format_number(share.value), (format_interval(share.interval),))


def dependence_section(main: Loaded) -> Section:
    """The sentence of each task, then its swaps; empty where no condition swapped anything."""
    section = Section("dependence", "What the answers depend on")
    for found in main.evaluation.dependence:
        if found.sentence:
            section.blocks.append(Remark(f"Task {found.task}: {found.sentence}"))
        lines = [
            [Cell(s.condition), Cell(str(s.n)), share_cell(s.changed), share_cell(s.cost), Cell(s.verdict or "–")]
            for s in found.swaps
        ]
        agreement = ""
        if found.head_agreement is not None:
            value, interval = format_number(found.head_agreement.value), format_interval(found.head_agreement.interval)
            agreement = f" Answers as is equal to those of the adapter's own head: {value} {interval}."
        caption = (
            f"Task {found.task}: the share of answers that each condition changes (scores: by more than {NOTICEABLE:.0%} of "
            "the range) and its cost, accuracy lost or mean absolute error gained, with 95 % intervals over "
            f"{found.num_clusters} {found.clusters}. Read: the interval of the cost lies above 0. Moves the answers without "
            f"a gain: else, where that of the changes lies above {NOTICEABLE}.{agreement}"
        )
        section.blocks.append(Table(["condition", "n", "answers changed", "cost ↓", "by the rule"], lines, caption))
    return section
