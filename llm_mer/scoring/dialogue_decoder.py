"""The Dialogical Emotion Decoder: emotions of a conversation as one sequence (arXiv 2503.20919, section III-C).

Emotions have inertia within a speaker (a Bernoulli shift with probability ``p0``) and cluster over a conversation (a
Chinese-restaurant process over blocks of equal emotion). Beam search finds the sequence of least cost.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from llm_mer.errors import UserError


def estimate_shift(states: Sequence[Hashable], speakers: Sequence[Hashable], dialogues: Sequence[Hashable]) -> float:
    """``p0 = (shifts + 1) / transitions``, counted per speaker within a dialogue, in the order given.

    With no transition at all the estimate is 1/2; it is kept inside (0, 1), so that its logarithms exist.
    """
    last: dict[tuple[Hashable, Hashable], Hashable] = {}
    shifts = transitions = 0
    for state, speaker, dialogue in zip(states, speakers, dialogues, strict=True):
        key = (dialogue, speaker)
        if key in last:
            transitions += 1
            shifts += last[key] != state
        last[key] = state
    if transitions == 0:
        return 0.5
    return min(max((shifts + 1) / transitions, 1e-6), 1 - 1e-6)


class OnlineDialogueDecoder:
    """Decodes utterance by utterance with the beam kept between calls.

    A hypothesis is a sequence of states with, for each state ``s``, the number ``c_s`` of *blocks* opened for it so far,
    and each speaker's last state. An utterance by speaker ``k`` adds to a hypothesis, for each next state ``s``:

    - ``−log p(s)`` always;
    - if ``k`` has spoken before and ``s`` is used already (anywhere in the hypothesis): ``−log(1 − p0)`` when ``s`` is
      ``k``'s last state, else ``−[log p0 + log c_s − log(Σc + α)]`` and ``c_s += 1``;
    - otherwise ``−[log p0 + log α − log(Σc + α)]`` and ``c_s += 1``.

    Ties keep the better-ranked hypothesis first, then the lower state index.

    Memory grows with the number of speakers but not of utterances, unless the whole :meth:`path` is wanted.

    Args:
        num_states: ``C``. p_shift: ``p0`` in (0, 1). alpha: concentration, above 0. beam_size: hypotheses kept.
        keep_path: keep what :meth:`path` needs, one row of the beam an utterance.
    """

    def __init__(
        self, num_states: int, p_shift: float, alpha: float = 1.0, beam_size: int = 5, keep_path: bool = False
    ) -> None:
        if not 0 < p_shift < 1:
            raise UserError(f"p_shift is {p_shift}; it must lie strictly between 0 and 1")
        if alpha <= 0 or beam_size < 1:
            raise UserError(f"alpha is {alpha} and beam_size {beam_size}; both must be positive")
        self.num_states, self.alpha, self.beam_size = num_states, alpha, beam_size
        self.log_stay, self.log_shift = math.log1p(-p_shift), math.log(p_shift)
        self.cost = np.zeros(1)  # (W,)
        self.blocks = np.zeros((1, num_states))  # (W, C)
        self.speakers: dict[Hashable, int] = {}
        self.last = np.full((1, 0), -1)  # (W, speakers)
        self.keep_path = keep_path
        self._states: list[np.ndarray] = []
        self._parents: list[np.ndarray] = []

    def push(self, log_probs: np.ndarray, speaker: Hashable) -> int:
        """Take in one utterance's ``(C,)`` log-probabilities; returns the best hypothesis's state for it."""
        log_probs = np.asarray(log_probs, dtype=np.float64)
        if log_probs.shape != (self.num_states,):
            raise UserError(f"log_probs has shape {log_probs.shape}; it must be ({self.num_states},)")
        if np.isnan(log_probs).any():
            raise UserError("log_probs holds NaN")
        if speaker not in self.speakers:
            self.speakers[speaker] = len(self.speakers)
            self.last = np.concatenate([self.last, np.full((len(self.cost), 1), -1)], axis=1)
        column = self.speakers[speaker]
        last = self.last[:, column : column + 1]  # (W, 1)
        used = self.blocks > 0  # (W, C)
        known = (last >= 0) & used
        stays = known & (np.arange(self.num_states)[None] == last)
        total = np.log(self.blocks.sum(axis=1, keepdims=True) + self.alpha)
        returning = self.log_shift + np.log(np.maximum(self.blocks, 1.0)) - total
        opening = self.log_shift + math.log(self.alpha) - total
        prior = np.where(stays, self.log_stay, np.where(known, returning, opening))
        cost = self.cost[:, None] - log_probs[None] - prior  # (W, C)
        # Stable sort over (hypothesis rank, state) is the tie rule.
        order = np.argsort(cost, axis=None, kind="stable")[: self.beam_size]
        parents, states = np.unravel_index(order, cost.shape)
        self.cost = cost[parents, states]
        self.blocks = self.blocks[parents]
        self.blocks[np.arange(len(states)), states] += ~stays[parents, states]
        self.last = self.last[parents]
        self.last[:, column] = states
        if self.keep_path:
            self._states.append(states)
            self._parents.append(parents)
        return int(states[0])

    def path(self, count: int | None = None) -> np.ndarray:
        """States of the best hypothesis, its last ``count`` utterances (default: all); needs ``keep_path``."""
        if not self.keep_path:
            raise ValueError("this decoder keeps no path: make it with keep_path=True")
        first = 0 if count is None else max(0, len(self._states) - count)
        rank, found = 0, []
        for states, parents in zip(reversed(self._states[first:]), reversed(self._parents[first:]), strict=True):
            found.append(int(states[rank]))
            rank = int(parents[rank])
        return np.array(found[::-1], dtype=np.int64)


def decode(
    log_probs: np.ndarray,
    speakers: Sequence[Hashable],
    p_shift: float,
    alpha: float = 1.0,
    beam_size: int = 5,
    passes: int = 2,
) -> np.ndarray:
    """States of a whole dialogue.

    The dialogue is decoded ``passes`` times end to end in one search, each pass beginning with the hypotheses, block
    counts and last states the pass before it ended with; the states of the last pass are kept. Early utterances are
    thus judged in the light of the whole conversation.

    Args:
        log_probs: ``(N, C)`` natural logs; rows that are not normalised are taken as they are. speakers: ``(N,)``, any
            number of them. p_shift: :func:`estimate_shift`.

    Returns:
        ``(N,)`` state indices.

    Raises:
        UserError: NaN, wrong shapes, or parameters out of range.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.ndim != 2 or len(log_probs) != len(speakers):
        raise UserError(f"log_probs has shape {log_probs.shape} for {len(speakers)} speakers; it must be (N, C)")
    if passes < 1:
        raise UserError(f"passes is {passes}; decode at least once")
    if len(log_probs) == 0:
        return np.zeros(0, dtype=np.int64)
    decoder = OnlineDialogueDecoder(log_probs.shape[1], p_shift, alpha, beam_size, keep_path=True)
    for _ in range(passes):
        for row, speaker in zip(log_probs, speakers, strict=True):
            decoder.push(row, speaker)
    return decoder.path(len(log_probs))
