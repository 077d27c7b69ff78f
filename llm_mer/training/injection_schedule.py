"""When in a training the pseudo tokens reach the language model, and what the auxiliary losses weigh meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InjectionSchedule:
    """Stages of one training, as shares of its steps, so that a resumed run goes on in the stage it was in.

    Attributes:
        words_first: in this share of the steps, from the first on, the language model gets no pseudo tokens.
        auxiliary_fade: over this share the weights of auxiliary losses fall from 1 to 0; None leaves them.
    """

    words_first: float = 0.0
    auxiliary_fade: float | None = None

    def withholds(self, step: int, steps: int) -> bool:
        """Whether step ``step`` (from 0) of ``steps`` is one without pseudo tokens."""
        return step < self.words_first * steps

    def auxiliary_weight(self, step: int, steps: int) -> float:
        """``max(0, 1 − step / (fade · steps))``, 1 without a fade."""
        return 1.0 if self.auxiliary_fade is None else max(0.0, 1.0 - step / (self.auxiliary_fade * steps))
