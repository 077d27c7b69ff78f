"""What an adapter's diagnostics are called and how they are shown. Plain data: a report needs no adapter to show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mer.errors import UserError

KINDS = ("weights", "gates", "measure", "epoch_value", "trajectory")


@dataclass(frozen=True)
class DiagnosticInfo:
    """One thing an adapter tells about itself, as people see it.

    Attributes:
        name: its key in ``FusionOutput.diagnostics``, or in what ``on_epoch_end`` or ``followed_vectors`` return.
        title: its heading.
        parts: what its components are, one name each: of a diagnostic ``(B, len(parts))``, of followed vectors
            ``(len(parts), d)``; of an epoch's value the one name of its curve.
        kind: ``weights`` (not negative, sum to 1), ``gates`` (each in [0, 1]), ``measure`` (any number), one row per
            sample; ``epoch_value`` (a number per epoch) and ``trajectory`` (vectors followed over epochs).
        label: its name in a one-line summary of an answer; empty leaves it out there.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    kind: str = "measure"
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"diagnostic {self.name!r}: kind {self.kind!r} is not one of {', '.join(KINDS)}")

    @property
    def of_samples(self) -> bool:
        """Whether it has a row per sample."""
        return self.kind in KINDS[:3]

    @property
    def over_turns(self) -> bool:
        """Whether its way along a conversation is worth a picture."""
        return self.kind in ("weights", "gates")

    def summary(self, values: Sequence[float]) -> str:
        """``expert weights 0.31 0.40 0.29``; empty where it has no ``label``."""
        return f"{self.label} " + " ".join(f"{value:.2f}" for value in values) if self.label else ""

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> DiagnosticInfo:
        """Read ``dataclasses.asdict`` back."""
        return cls(**{**entry, "parts": tuple(entry["parts"])})
