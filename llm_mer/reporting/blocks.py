"""The building blocks of a report section: tables, pictures, remarks and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_mer.reporting import plots
from llm_mer.reporting.facts import Fact


@dataclass(frozen=True)
class Cell:
    """A table cell: a value, smaller lines below it, and a tone (``good``, ``bad``, ``unsure``)."""

    text: str
    below: tuple[str, ...] = ()
    tone: str = ""


@dataclass
class Table:
    """Rows under column names; the first ``heads`` columns are text, the others right-aligned numbers."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str
    heads: int = 1
    folded: str = ""
    kind: str = "table"


@dataclass
class Picture:
    """A plot with its caption, which is also its alternative text."""

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
    """A heading and its blocks; consecutive pictures are placed side by side if there is room."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def block_groups(self) -> list[list[Block]]:
        """Blocks in order, with consecutive pictures grouped together."""
        groups: list[list[Block]] = []
        for block in self.blocks:
            if groups and isinstance(block, Picture) and isinstance(groups[-1][-1], Picture):
                groups[-1].append(block)
            else:
                groups.append([block])
        return groups
