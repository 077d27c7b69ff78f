"""Scores against annotators' votes."""

from __future__ import annotations

from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.vote_scores import VoteScore
from llm_mer.reporting.blocks import Cell, Section, Table
from llm_mer.reporting.facts import LoadedEvaluation
from llm_mer.reporting.wording import format_number

CAPTION = (
    "Answers as is against the votes, ties included; 95 % intervals over the unit, drawn whole. Cross-entropy and "
    "Jensen-Shannon divergence in nats, lower is better; agreement: the share of annotators who named the answer. Constant: "
    "the votes' own mean distribution, or the label that does best. Annotators: one of them left out, against or from the "
    "others. Bound: what no answers can be better than on these votes."
)


def votes_section(main: LoadedEvaluation) -> Section:
    """Each metric beside a constant, what annotators reach and what nothing can pass; empty where no utterance has votes."""
    section = Section("votes", "Annotators' votes")
    lines = []
    for task in main.tasks:
        for language in main.languages:
            row = main.evaluation.find(AS_IS, task.name, language)
            lines += [_line(task.name, language, score) for score in (row.vote_scores if row is not None else [])]
    if lines:
        head = ["task", "language", "metric", "n", "unit", "score", "constant", "annotators", "bound"]
        section.blocks.append(Table(head, lines, CAPTION, heads=3))
    return section


def _line(task: str, language: str, score: VoteScore) -> list[Cell]:
    def cell(value: float | None, interval: tuple[float, float] | None) -> Cell:
        if value is None or interval is None:
            return Cell("–")
        return Cell(format_number(value), (f"{format_number(interval[0])} to {format_number(interval[1])}",))

    unit = f"{score.units} {score.unit}s"
    return [
        *(Cell(text) for text in (task, language, score.metric, str(score.n), unit)),
        cell(score.value, score.interval),
        cell(score.constant, score.constant_interval),
        cell(score.annotators, score.annotators_interval),
        Cell(format_number(score.extreme)),
    ]
