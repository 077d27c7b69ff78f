"""What the answers depend on: text, audio and vision, measured by swapping each of them."""

from __future__ import annotations

from llm_mer.evaluation.dependence import NOTICEABLE, Share
from llm_mer.reporting.blocks import Cell, Remark, Section, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import format_interval, format_number


def format_share(share: Share) -> Cell:
    """A mean and its interval."""
    return Cell(format_number(share.value), (format_interval(share.interval),))


def dependence_section(main: LoadedEvaluation) -> Section:
    """A summary sentence for each task, then its swaps; empty if no condition swapped anything."""
    section = Section("dependence", "What the answers depend on")
    for found in main.evaluation.dependence:
        if found.sentence:
            section.blocks.append(Remark(f"Task {found.task}: {found.sentence}"))
        lines = [
            [Cell(s.condition), Cell(str(s.n)), format_share(s.changed), format_share(s.cost), Cell(s.verdict or "–")]
            for s in found.swaps
        ]
        agreement = ""
        if found.head_agreement is not None:
            value, interval = format_number(found.head_agreement.value), format_interval(found.head_agreement.interval)
            agreement = f" Share of answers equal to those of the adapter's own head: {value} {interval}."
        caption = (
            f"Task {found.task}: the share of answers that each condition changes (scores: by more than {NOTICEABLE:.0%} of "
            "the range) and its cost, accuracy lost or mean absolute error gained, with 95 % intervals over "
            f"{found.num_clusters} {found.clusters}. Read: the interval of the cost lies above 0. Changes the answers "
            f"without benefit: otherwise, if the interval of the changes lies above {NOTICEABLE}.{agreement}"
        )
        section.blocks.append(Table(["condition", "n", "answers changed", "cost ↓", "by the rule"], lines, caption))
    return section
