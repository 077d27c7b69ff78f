"""What a section of a report is made of: tables, pictures, remarks, verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_mer.reporting import plots
from llm_mer.reporting.facts import Fact


@dataclass(frozen=True)
class Cell:
    """A table cell: a value, smaller lines under it, and a tone (``good``, ``bad``, ``unsure``)."""

    text: str
    below: tuple[str, ...] = ()
    tone: str = ""


@dataclass
class Table:
    """Rows under column names; the first ``heads`` columns are words, the others numbers, set flush right."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str
    heads: int = 1
    folded: str = ""
    kind: str = "table"


@dataclass
class Picture:
    """A plot with its caption, which is also what a screen reader says."""

    image: plots.Image
    caption: str
    kind: str = "picture"


@dataclass
class Remark:
    """A paragraph; ``tone`` as in :class:`Cell`."""

    text: str
    tone: str = ""
    kind: str = "remark"


@dataclass
class Verdict:
    """A fact: claim, verdict, rule and its numbers."""

    fact: Fact
    table: Table
    tone: str
    kind: str = "verdict"


Block = Table | Picture | Remark | Verdict


@dataclass
class Section:
    """A heading and what stands under it; pictures that follow one another stand side by side where there is room."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def runs(self) -> list[list[Block]]:
        """Blocks in order, neighbouring pictures together."""
        found: list[list[Block]] = []
        for block in self.blocks:
            if found and isinstance(block, Picture) and isinstance(found[-1][-1], Picture):
                found[-1].append(block)
            else:
                found.append([block])
        return found
