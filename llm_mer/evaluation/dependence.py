"""What the answers depend on: how many of them change, and what it costs, when a part comes from another utterance.

The rule of the sentence, for each swapped part, by 95 % intervals over whole clusters (:class:`Clusters`):

* it is **read** where the swap makes the score worse: the interval of the cost lies above 0;
* else it **moves the answers without a gain** where the swap changes more than :data:`NOTICEABLE` of them: the interval of
  that share lies above it;
* else **no effect is detected**.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llm_mer.evaluation.clusters import Clusters
from llm_mer.evaluation.conditions import AS_IS, FEATURES, TRANSCRIPT, Condition
from llm_mer.evaluation.resampling import mean_interval
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task

NOTICEABLE = 0.05
"""Share of answers up to which a change is not worth a word; of a score's range, up to which it counts as the same."""
SOURCES: dict[tuple[str, ...], str] = {
    (TRANSCRIPT,): "the words",
    ("text",): "the words",
    ("audio",): "the sound",
    ("vision",): "the face",
    ("audio", "vision"): "sound and face",
    (FEATURES,): "the features",
}
READ, MOVED, NO_EFFECT = "read", "moves the answers without a gain", "no effect detected"


@dataclass(frozen=True)
class Share:
    """A mean over utterances with its 95 % interval over clusters."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Swap:
    """What one condition does to the answers of one task.

    Attributes:
        source: the swapped part in words; None for ``without:adapter`` and other mixtures, which have no verdict.
        changed: share of the answers that differ from those as is (scores: by more than 5 % of the task's range).
        cost: accuracy as is − accuracy under the condition; for scores the mean absolute error under it − that as is.
        verdict: :data:`READ`, :data:`MOVED` or :data:`NO_EFFECT`.
    """

    condition: str
    source: str | None
    n: int
    changed: Share
    cost: Share
    verdict: str | None


@dataclass(frozen=True)
class Dependence:
    """Every swap of one task, the answers' agreement with the adapter's own head, and one sentence about them."""

    task: str
    clusters: str
    num_clusters: int
    sentence: str
    swaps: list[Swap] = field(default_factory=list)
    head_agreement: Share | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Dependence:
        """Read :meth:`to_dict` back."""
        swaps = [
            Swap(**{**swap, "changed": _share(swap["changed"]), "cost": _share(swap["cost"])}) for swap in entry["swaps"]
        ]
        agreement = entry["head_agreement"]
        return cls(**{**entry, "swaps": swaps, "head_agreement": None if agreement is None else _share(agreement)})


def _share(entry: dict[str, Any]) -> Share:
    low, high = entry["interval"]
    return Share(entry["value"], (low, high))


def find_dependence(
    task: Task,
    by_condition: Mapping[str, Sequence[Prediction]],
    conditions: Sequence[Condition],
    resamples: int,
    seed: int,
    with_backbone: bool = True,
) -> Dependence | None:
    """How the answers to a task depend on what ``shuffle`` and ``without:adapter`` changed; None without such a condition.

    Args:
        by_condition: predictions of the same questions in one order, ``as is`` among them.
        with_backbone: whether a language model answered; the sentence says who did.
    """
    wanted = [c for c in conditions if c.kind == "shuffle" or c.withholds_adapter]
    places = [i for i, p in enumerate(by_condition[AS_IS]) if p.task == task.name and p.truth is not None]
    if not wanted or not places:
        return None
    as_is = [by_condition[AS_IS][i] for i in places]
    clusters = Clusters.of(as_is)
    tolerance = 0.0
    if task.kind == "regression":
        low, high = task.require_range()
        tolerance = NOTICEABLE * (high - low)

    def share(values: np.ndarray) -> Share:
        return Share(float(values.mean()), mean_interval(values, clusters, resamples, seed))

    before = errors(task, as_is)
    swaps = []
    for condition in wanted:
        other = [by_condition[condition.name][i] for i in places]
        assert [p.id for p in other] == [p.id for p in as_is]
        changed = share(np.array([differ(p.value, q.value, tolerance) for p, q in zip(as_is, other, strict=True)], float))
        cost = share(errors(task, other) - before)
        source = SOURCES.get(condition.modalities) if condition.kind == "shuffle" else None
        swaps.append(Swap(condition.name, source, len(places), changed, cost, source and verdict_of(changed, cost)))
    agreement = None
    if with_backbone and all(p.head_value is not None for p in as_is):
        agreement = share(1.0 - np.array([differ(p.value, p.head_value, tolerance) for p in as_is], float))
    who = "the language model" if with_backbone else "the adapter"
    return Dependence(task.name, f"{clusters.unit}s", clusters.count, sentence_of(who, swaps), swaps, agreement)


def errors(task: Task, predictions: Sequence[Prediction]) -> np.ndarray:
    """Of each answer 1 or 0 (wrong or right), or the absolute error of a score: ``(N,)``."""
    if task.kind == "classification":
        return np.array([p.value != p.truth for p in predictions], float)
    return np.array([abs(float(p.value) - float(p.truth)) for p in predictions if p.truth is not None])


def differ(one: str | float | None, two: str | float | None, tolerance: float) -> bool:
    """Whether two answers are not the same; scores may be ``tolerance`` apart."""
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return abs(one - two) > tolerance + 1e-9
    return one != two


def verdict_of(changed: Share, cost: Share) -> str:
    """The rule at the top of this file."""
    if cost.interval[0] > 0:
        return READ
    return MOVED if changed.interval[0] > NOTICEABLE else NO_EFFECT


def sentence_of(who: str, swaps: Sequence[Swap]) -> str:
    """``The language model reads the words; the sound moves its answers without a gain; …`` by the swaps' verdicts.

    The words alone (``shuffle:transcript``) go before the words with their features (``shuffle:text``).
    """
    verdicts: dict[str, str] = {}
    for swap in swaps:
        if (
            swap.source is not None
            and swap.verdict is not None
            and (swap.source not in verdicts or swap.condition.startswith(TRANSCRIPT))
        ):
            verdicts[swap.source] = swap.verdict
    read, moved, unseen = ([s for s, v in verdicts.items() if v == kind] for kind in (READ, MOVED, NO_EFFECT))
    parts = [f"reads {_join(read, 'and')}"] if read else []
    parts += [f"lets {_join(moved, 'and')} move its answers without a gain"] if moved else []
    parts += [f"is not seen to read {_join(unseen, 'or')}"] if unseen else []
    text = f"{who} {'; it '.join(parts)}." if parts else ""
    return text[:1].upper() + text[1:]


def _join(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def dependence_lines(found: Sequence[Dependence]) -> list[str]:
    """The same as text, under the table of an evaluation."""

    def shown(share: Share, sign: str = "") -> str:
        return f"{share.value:{sign}.3f} [{share.interval[0]:{sign}.3f}, {share.interval[1]:{sign}.3f}]"

    lines = []
    for dependence in found:
        for swap in dependence.swaps:
            verdict = "" if swap.verdict is None else f"  {swap.source}: {swap.verdict}"
            changes = f"changes {shown(swap.changed)} of the answers, costs {shown(swap.cost, '+')}"
            lines.append(f"{swap.condition:<28} {dependence.task:<10} {changes}{verdict}")
        if dependence.head_agreement is not None:
            lines.append(f"{'answers equal to the head':<28} {dependence.task:<10} {shown(dependence.head_agreement)}")
        if dependence.sentence:
            over = f"(95 % intervals over {dependence.num_clusters} {dependence.clusters})"
            lines.append(f"{dependence.task}: {dependence.sentence} {over}")
    return lines
