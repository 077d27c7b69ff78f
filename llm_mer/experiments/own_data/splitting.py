"""Training, validation and test split of clips that come without: speakers and dialogues kept apart, labels spread."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task

FEW, FEW_FOLDS, MANY_FOLDS = 500, 5, 10
"""Below :data:`FEW` clips each of test and validation is a fifth, else a tenth."""
SCORE_BINS = 4
MIN_GROUPS = 3


@dataclass(frozen=True)
class Splits:
    """The split of every utterance, and how it came about."""

    names: tuple[str, ...]
    how: str
    drawn: bool


def find_splits(
    utterances: Sequence[Utterance], given: Sequence[bool], task: Task, by: str, seed: int, place: str
) -> Splits:
    """The splits that the table names, or drawn ones.

    Args:
        given: whether each row has a value in the column ``split``. task: whose labels (or quarters of its scores) are
            spread over the splits. by: what is kept apart (``auto``: speakers and dialogues, else clips). place: the table.

    Raises:
        UserError: a split for some rows only, one that is missing, or too few speakers or dialogues to keep apart.
    """
    if any(given):
        if not all(given):
            first = utterances[given.index(False)].id
            raise UserError(
                f"{place}: {given.count(False)} of {len(given)} rows have no split, the first {first!r}; give every row one "
                "of train, valid, test, or leave the column out"
            )
        names = tuple(utterance.split for utterance in utterances)
        if missing := [name for name in ("train", "test") if name not in names]:
            raise UserError(f"{place}: no row has the split {missing[0]!r}; name some, or leave the column out")
        return Splits(names, "as the column split says", False)
    groups, kept = _groups(utterances, by)
    if (count := len(set(groups))) < MIN_GROUPS:
        others = [name for name in _known(utterances) if name not in (kept, by)] + ["clip"]
        raise UserError(
            f"{place}: kept apart by {kept}, the clips are {count} {'group' if count == 1 else 'groups'}, and three splits "
            f"take {MIN_GROUPS}; add a column split"
            + (
                ""
                if kept == "clip"
                else f", or say --split_by {' or '.join(others)} (voices that are remembered then count)"
            )
        )
    names = draw_splits(groups, _strata(utterances, task), seed)
    shown = {"speaker": "no speaker in two of them", "dialogue_id": "no dialogue in two of them", "clip": "clip by clip"}[
        kept
    ]
    return Splits(names, f"drawn with --split_seed {seed}: {shown}, {task.name!r} spread over them", True)


def draw_splits(groups: Sequence[Hashable], strata: Sequence[Hashable], seed: int) -> tuple[str, ...]:
    """A split for each row: no group in two of them, strata spread as evenly as that allows.

    scikit-learn's ``StratifiedGroupKFold``: the first fold is the test, the second validation, all others are trained on.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    classes = {stratum: number for number, stratum in enumerate(dict.fromkeys(strata))}
    rows = np.arange(len(groups))
    folds = min(FEW_FOLDS if len(groups) < FEW else MANY_FOLDS, len(numbers))
    names = np.array(["train"] * len(groups), dtype=object)
    # It refuses more folds than the largest class has rows, and warns where the smallest has fewer.
    labels = np.array([classes[stratum] for stratum in strata])
    if max(Counter(labels.tolist()).values()) < folds:
        labels = np.zeros_like(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        parts = [held for _, held in splitter.split(rows, labels, [numbers[group] for group in groups])]
    # A large group makes its fold unlike the others: what is held out is nearest to an even share of every stratum.
    share = np.bincount(labels) / folds
    distances = [float(np.abs(np.bincount(labels[part], minlength=len(share)) - share).sum()) for part in parts]
    held_out = sorted((number for number in range(folds) if len(parts[number])), key=lambda number: distances[number])[:2]
    for name, number in zip(("test", "valid"), held_out, strict=True):
        names[parts[number]] = name
    return tuple(names)


KEYS: dict[str, Callable[[Utterance], str | None]] = {
    "speaker": lambda utterance: utterance.speaker,
    "dialogue_id": lambda utterance: utterance.dialogue_id,
}
"""What clips may have in common, beside a file."""


def _known(utterances: Sequence[Utterance]) -> list[str]:
    return [name for name, key in KEYS.items() if any(key(utterance) is not None for utterance in utterances)]


def _groups(utterances: Sequence[Utterance], by: str) -> tuple[list[Hashable], str]:
    """A key for each utterance such that those of one key stay together, and what is kept apart."""
    known = _known(utterances)
    if by in KEYS and by not in known:
        raise UserError(f"--split_by {by}: no row has one")
    kept = known[0] if by == "auto" and known else "clip" if by == "auto" else by
    together = [KEYS[name] for name in known if by == "auto" or name == by]
    return _connected(utterances, together), kept


def _connected(utterances: Sequence[Utterance], keys: Sequence[Callable[[Utterance], str | None]]) -> list[Hashable]:
    """The number of the connected part each utterance is in, where one file, speaker or dialogue connects two."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes: dict[Hashable, int] = {}
    pairs = []
    for row, utterance in enumerate(utterances):
        shared: list[Hashable] = [(number, key(utterance)) for number, key in enumerate(keys) if key(utterance) is not None]
        shared += [("file", file) for file in {utterance.audio, utterance.vision} if file is not None]
        pairs += [(row, len(utterances) + nodes.setdefault(node, len(nodes))) for node in shared]
    size = len(utterances) + len(nodes)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return [int(label) for label in labels[: len(utterances)]]


def _strata(utterances: Sequence[Utterance], task: Task) -> list[Hashable]:
    """The label of each utterance, or the quarter of its score; None without."""
    truths = [utterance.labels.get(task.target) for utterance in utterances]
    if task.kind == "classification":
        return [None if t is None or task.ignores(t) else task.class_index(t) for t in truths]
    known = [float(t) for t in truths if t is not None]
    edges = np.quantile(known, np.linspace(0, 1, SCORE_BINS + 1)[1:-1])
    return [None if t is None else int(np.searchsorted(edges, float(t))) for t in truths]


def count_labels(utterances: Sequence[Utterance], splits: Sequence[str], task: Task) -> dict[str, dict[str, int]]:
    """``{split: {label: rows}}``; of scores the rows that have one, under an empty label."""
    found: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    for utterance, split in zip(utterances, splits, strict=True):
        truth = utterance.labels.get(task.target)
        if truth is None or task.ignores(truth):
            continue
        label = task.label_names[task.class_index(truth)] if task.kind == "classification" else ""
        found[split][label] = found[split].get(label, 0) + 1
    return found
