"""Annotators' votes: how many of them named each label of a classification task, and the resulting truth and distribution.

An utterance's votes are counts ``n_c`` of the ``A`` annotators who named label ``c``. Where each named one label, ``A`` is
the sum of the counts; where each may name several, ``A`` is given separately (``annotators``). For a task

- the **label distribution** is ``v_c = n_c / Σ_k n_k`` over its labels; labels that the task ignores are excluded;
- the **majority label** is the one with the most votes. With a tie there is none: such an utterance has no truth, and
  none is drawn at random. A label given in addition to the votes must be one with the most votes; it decides a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.text_forms import compose
from llm_mer.storage.quoting import quote


@dataclass(frozen=True)
class Votes:
    """Votes as given in the data.

    Attributes:
        counts: label, in the spelling of the data (composed, NFC), → annotators who named it.
        annotators: how many voted; None where each named one label, so that they are the sum of the counts.
    """

    counts: Mapping[str, int]
    annotators: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.counts, Mapping) and all(isinstance(label, str) for label in self.counts):
            composed = {compose(label): count for label, count in self.counts.items()}
            if len(composed) == len(self.counts):  # else check refuses them, and knows where they stand
                object.__setattr__(self, "counts", composed)

    def check(self, where: str) -> None:
        """Raises :class:`UserError` for invalid counts, no count above 0, or more votes for a label than annotators."""
        if not isinstance(self.counts, Mapping) or not all(isinstance(label, str) for label in self.counts):
            raise UserError(f"{where} are {quote(self.counts)}; they must be a mapping of labels to counts")
        if any(compose(label) != label for label in self.counts):
            raise UserError(f"{where}: {quote(dict(self.counts))} names a label in two Unicode forms; write it once")
        for label, count in self.counts.items():
            if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 0:
                raise UserError(
                    f"{where}: {quote(label)} has {quote(count)} votes; they must be a whole number of at least 0, the "
                    "annotators who named it"
                )
        if not any(self.counts.values()):
            raise UserError(f"{where} are all 0; leave unknown votes out")
        if self.annotators is None:
            return
        if not isinstance(self.annotators, int | np.integer) or isinstance(self.annotators, bool) or self.annotators < 1:
            raise UserError(f"{where}: annotators is {quote(self.annotators)}; it must be a whole number of at least 1")
        label, most = max(self.counts.items(), key=lambda entry: entry[1])
        if most > self.annotators:
            raise UserError(f"{where}: {quote(label)} has {most} votes of {self.annotators} annotators")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        counts = {label: int(count) for label, count in sorted(self.counts.items())}
        return {"counts": counts, "annotators": None if self.annotators is None else int(self.annotators)}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Votes:
        """Read :meth:`to_dict` back."""
        return cls(dict(entry["counts"]), entry["annotators"])


def read_votes(given: Any, where: str) -> dict[str, Votes]:
    """Votes by target (composed, NFC), checked; ``{label: count}`` alone is of annotators who named one label each.

    Raises:
        UserError: no mapping, or as :meth:`Votes.check`.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{where} are {quote(given)}; they must be a mapping of targets to votes")
    found = {}
    for target, value in given.items():
        votes = value if isinstance(value, Votes) else Votes(value)
        votes.check(f"{where} of {target!r}")
        found[compose(str(target))] = votes
    return found


@dataclass(frozen=True)
class LabelVotes:
    """Votes over the labels of a task, in their order.

    Attributes:
        counts: of each label. annotators: how many voted; where each named one label, those who named one of the task's.
        exclusive: whether each annotator named one label.
    """

    counts: tuple[int, ...]
    annotators: int
    exclusive: bool

    @property
    def shares(self) -> np.ndarray:
        """``v_c = n_c / Σ_k n_k``: ``(C,)`` float64."""
        counts = np.asarray(self.counts, dtype=np.float64)
        return counts / counts.sum()

    @property
    def first(self) -> tuple[int, ...]:
        """Indices of the labels with the most votes; several where they tie."""
        most = max(self.counts)
        return tuple(index for index, count in enumerate(self.counts) if count == most)

    def by_name(self, task: Task) -> dict[str, int]:
        """Labels that were named, and by how many."""
        return {name: int(count) for name, count in zip(task.label_names, self.counts, strict=True) if count}


@dataclass(frozen=True)
class Known:
    """What is known of a task's answer for one utterance; ``truth`` is None if unknown, or if votes tie."""

    truth: str | float | None
    votes: LabelVotes | None = None


def votes_of_task(task: Task, votes: Votes, where: str) -> LabelVotes | None:
    """The votes on a task's labels; None if all are for labels that the task ignores.

    Raises:
        UserError: a label outside the task, a task of numbers, or several spellings of a label (``aliases``) with more votes
            together than there are annotators: which of them are the same annotator's is not known.
    """
    if task.kind != "classification":
        raise UserError(f"{where}: votes of {task.target!r}: task {task.name!r} asks for a number, and votes are for labels")
    counts = [0] * task.num_classes
    for label, count in votes.counts.items():
        if not task.ignores(label):
            counts[task.class_index(label, f"{where}: votes")] += count
    if not any(counts):
        return None
    annotators = sum(counts) if votes.annotators is None else votes.annotators
    if max(counts) > annotators:
        label = task.label_names[counts.index(max(counts))]
        raise UserError(
            f"{where}: votes: {label!r} has {max(counts)} votes of {annotators} annotators in several spellings; merge them"
        )
    return LabelVotes(tuple(counts), annotators, exclusive=votes.annotators is None)


def known_answer(task: Task, labels: Mapping[str, str | float], votes: Mapping[str, Votes], where: str) -> Known:
    """The truth of a task: the label or score given, else the majority of the votes, if there is one.

    Raises:
        UserError: a label or score outside the task, or a label that is not among those with the most votes.
    """
    target = task.target
    if target in labels and task.ignores(labels[target]):
        return Known(None)
    found = votes_of_task(task, votes[target], where) if target in votes else None
    if target not in labels:
        first = () if found is None else found.first
        return Known(task.label_names[first[0]] if len(first) == 1 else None, found)
    if task.kind != "classification":
        return Known(task.score(labels[target], where))
    index = task.class_index(labels[target], where)
    if found is not None and index not in found.first:
        most = ", ".join(f"{task.label_names[i]} ({found.counts[i]})" for i in found.first)
        raise UserError(
            f"{where}: label {task.label_names[index]!r} of {target!r} has {found.counts[index]} votes, the most has "
            f"{most}; correct it, or leave out the label (the majority is taken) or the votes"
        )
    return Known(task.label_names[index], found)
