"""How folds are made: what is kept together, leave-one-out or k parts of about equal size, and what validates."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_mer.data.folds import Fold, Folds
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.storage.quoting import list_names

logger = logging.getLogger(__name__)

SESSION, SPEAKER, DIALOGUE, UTTERANCE = "session", "speaker", "dialogue", "utterance"
SESSION_TAG = "session:"
IEMOCAP_SESSION = re.compile(r"Ses\d\d")
"""As dialogues and utterances of IEMOCAP begin: ``Ses01F_impro01`` is of ``Ses01``."""


Group = tuple[str, str]
"""A unit and its name."""


@dataclass(frozen=True)
class Member:
    """What of an utterance says where it belongs."""

    id: str
    dialogue: str | None
    speaker: str | None
    tags: tuple[str, ...]

    @classmethod
    def of(cls, utterance: Utterance) -> Member:
        """That of an utterance, without its features."""
        return cls(utterance.id, utterance.dialogue_id, utterance.speaker, utterance.tags)


def sessions(members: Sequence[Member]) -> list[str]:
    """The session of each utterance: its tag ``session:NAME``, else the beginning of IEMOCAP's dialogues and ids.

    Raises:
        UserError: an utterance without one, or with two.
    """
    found = []
    for member in members:
        tagged = [tag.removeprefix(SESSION_TAG) for tag in member.tags if tag.startswith(SESSION_TAG)]
        if len(tagged) > 1:
            raise UserError(f"utterance {member.id!r} has the sessions {list_names(tagged)}; it may have one")
        matches = [IEMOCAP_SESSION.match(name) for name in (member.dialogue or "", member.id)]
        named = [match[0] for match in matches if match is not None]
        if not tagged and not named:
            raise UserError(
                f"folds by session: utterance {member.id!r} has none; looked for a tag {SESSION_TAG}NAME (the field session "
                "of a manifest) and for a dialogue or id that begins as IEMOCAP's, with Ses01; by speaker, or a number of "
                "folds, needs none"
            )
        found.append((tagged or named)[0])
    return found


def speakers(members: Sequence[Member]) -> list[str]:
    """The speaker of each utterance. Raises :class:`UserError` for one without."""
    for member in members:
        if member.speaker is None:
            raise UserError(
                f"folds by speaker: utterance {member.id!r} has none; looked for the field speaker; a number of folds "
                "needs none"
            )
    return [str(member.speaker) for member in members]


def natural_groups(members: Sequence[Member]) -> tuple[str, list[Group]]:
    """What belongs together: dialogues where some has two utterances or more, else speakers likewise, else utterances.

    Returns:
        The unit, and the group of each utterance; one without a dialogue (or speaker) is a group of its own.
    """
    for unit in (DIALOGUE, SPEAKER):
        names = [getattr(member, unit) for member in members]
        counts = Counter(name for name in names if name is not None)
        if len(counts) > 1 and max(counts.values()) > 1:
            pairs = zip(members, names, strict=True)
            return unit, [(UTTERANCE, member.id) if name is None else (unit, name) for member, name in pairs]
    return UTTERANCE, [(UTTERANCE, member.id) for member in members]


def balanced_parts(sizes: Mapping[Group, int], count: int, seed: int) -> list[list[Group]]:
    """Groups in ``count`` parts of about equal size: the largest first, each into the part that is smallest so far.

    That is the rule of scikit-learn's ``GroupKFold``; groups of one size come in an order drawn with ``seed``.
    """
    names = list(sizes)
    order = np.random.default_rng([seed, 0]).permutation(len(names))
    ordered = sorted((names[i] for i in order), key=lambda name: -sizes[name])
    parts: list[list[Group]] = [[] for _ in range(count)]
    totals = [0] * count
    for name in ordered:
        smallest = totals.index(min(totals))
        parts[smallest].append(name)
        totals[smallest] += sizes[name]
    return parts


def draw_validation(sizes: Mapping[Group, int], share: float, generator: np.random.Generator, where: str) -> set[Group]:
    """Groups of the training part in random order, as many as come nearest to ``share`` of its utterances, one at least.

    Raises:
        UserError: a single group, which would leave nothing to train on.
    """
    names = list(sizes)
    if len(names) < 2:
        raise UserError(
            f"{where}: its training part is one {names[0][0]}, which cannot also validate; --validation 0 trains without"
        )
    wanted, total = share * sum(sizes.values()), 0
    drawn: set[Group] = set()
    for place in generator.permutation(len(names))[:-1]:
        size = sizes[names[place]]
        if drawn and abs(total + size - wanted) >= abs(total - wanted):
            break
        drawn.add(names[place])
        total += size
    return drawn


def make_folds(utterances: Sequence[Utterance], by: str, validation: float, seed: int, data: str | None = None) -> Folds:
    """Leave one session or speaker out, or K parts of whole dialogues (else speakers, else utterances).

    Every utterance is tested in one fold. Validation is drawn from the training part of each: whole speakers where folds are
    by speaker, else whole dialogues (else speakers, else utterances); no epoch is chosen on what is tested.

    Args:
        by: ``session``, ``speaker``, or a number of folds of at least 2.
        validation: share of each training part, from 0 (none) to below 1.
        data: fingerprint of the utterances, which is written down.

    Raises:
        UserError: an utterance without session or speaker, fewer groups than folds, or a training part of one group.
    """
    if not 0 <= validation < 1:
        raise UserError(f"--validation {validation}: it must be a share from 0 (none) to below 1")
    members = [Member.of(utterance) for utterance in utterances]
    unit, natural = natural_groups(members)
    if by in (SESSION, SPEAKER):
        fold_of, parts = _leave_one_out(members, by)
    else:
        fold_of, parts = natural, _whole_groups(natural, unit, by, seed)
    validating = fold_of if by == SPEAKER else natural
    folds = []
    for number, (name, groups) in enumerate(parts.items()):
        tested = np.array([group in groups for group in fold_of])
        drawn: set[Group] = set()
        if validation:
            sizes = Counter(group for group, out in zip(validating, tested, strict=True) if not out)
            drawn = draw_validation(sizes, validation, np.random.default_rng([seed, 1, number]), f"fold {name!r}")
        held = np.array([group in drawn for group in validating]) & ~tested
        train, valid, test = (
            tuple(members[row].id for row in np.flatnonzero(part)) for part in (~tested & ~held, held, tested)
        )
        folds.append(Fold(name, train, valid, test))
    kept_whole = by if by in (SESSION, SPEAKER) else unit
    return Folds(tuple(folds), kept_whole, SPEAKER if by == SPEAKER else unit, validation, seed, data)


def _leave_one_out(members: Sequence[Member], by: str) -> tuple[list[Group], dict[str, set[Group]]]:
    """The group of each utterance, and a fold for each group, named after it."""
    names = sessions(members) if by == SESSION else speakers(members)
    if len(set(names)) < 2:
        raise UserError(f"--folds {by}: all {len(members)} utterances are of {names[0]!r}; none is left to train on")
    return [(by, name) for name in names], {name: {(by, name)} for name in sorted(set(names))}


def _whole_groups(natural: Sequence[Group], unit: str, by: str, seed: int) -> dict[str, set[Group]]:
    """The groups of each of K folds, named 1 to K."""
    if not by.isdecimal() or int(by) < 2:
        raise UserError(f"--folds {by}: write session, speaker, a number of folds from 2 on, or the path of a file of folds")
    count, sizes = int(by), Counter(natural)
    if count > len(sizes):
        raise UserError(f"--folds {count}: the data have {len(sizes)} {unit}s, which are kept whole")
    if unit != DIALOGUE:
        logger.warning("the data have no dialogues of several utterances: the folds keep %ss whole", unit)
    return {str(number): set(part) for number, part in enumerate(balanced_parts(sizes, count, seed), 1)}


def warn_of_shared(utterances: Sequence[Utterance], folds: Folds) -> None:
    """Say which dialogues and speakers are both tested and trained on, with the number of folds this is in."""
    members = {utterance.id: Member.of(utterance) for utterance in utterances}
    for unit, means in (
        (DIALOGUE, "its turns in other parts are in no window, and what was said around an answer was trained on"),
        (SPEAKER, "the scores are not of new speakers; --folds speaker leaves each out"),
    ):
        shared: list[str] = []
        count = 0
        for fold in folds.folds:
            tested, seen = (
                {name for i in ids if (name := getattr(members[i], unit)) is not None}
                for ids in (fold.test, (*fold.train, *fold.valid))
            )
            count += bool(tested & seen)
            shared += sorted(tested & seen)
        if shared:
            places = f"{count} of {len(folds.folds)} folds"
            logger.warning("in %s a %s is tested and trained on, e.g. %s: %s", places, unit, shared[0], means)
