"""Checks of a data set: problems within an utterance, between utterances and between splits."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mer.data.schema import SPLITS, Utterance
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.data.validation.encoding import is_mojibake, is_other_language
from llm_mer.data.validation.findings import ADVICE, ERROR, INFO, WARNING, Finding, shorten
from llm_mer.data.validation.leakage import class_separation, score_correlation
from llm_mer.data.votes import Known, known_answer, votes_of_task
from llm_mer.errors import UserError
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.tasks import Task, builtin_tasks
from llm_mer.prompting.text_forms import canonical_form, find_lookalikes, has_hidden_characters, is_blank

MAX_IDS_SHOWN = 5
"""Number of ids shown with each finding."""
LEAK_CHECK_UTTERANCES = 4000
"""Number of randomly drawn training utterances used by the leakage check."""
LEAK_ERROR, LEAK_WARNING = 0.999, 0.98
"""Area under the ROC curve of one class against the others, or |correlation| with the score: an error above the first, a
warning above the second."""
MIN_DURATION_RATIO, MIN_DURATION_GAP = 1.5, 1.0
"""Audio and vision disagree if one is longer both by this factor and by this many seconds."""
MAX_UNKNOWN_LABELS = 0.5
"""If more than this share of labels lies outside the best built-in task, they are assumed to belong to a custom task."""


PLACEHOLDERS = frozenset({"nan", "none", "null", "n/a", "#n/a", "<na>", "nat", "undefined"})
"""What programs write for a value that is missing."""


def _digest(*parts: bytes) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return int.from_bytes(hashed.digest(), "little")


class _LabelCheck:
    """Collects the labels of one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.found = 0
        self.wrong: dict[str, Counter[str]] = {}
        self.first: dict[str, list[str]] = {}
        self.classes: dict[str, Counter[str]] = {}
        self.languages: dict[str, list[str]] = {}
        self.ties: Counter[str] = Counter()
        self.contradicted: dict[str, list[str]] = {}
        self._class_names: dict[str, str | None] = {}

    @property
    def width(self) -> float:
        """Size of the task's label set or range; of two tasks that fit, the narrower is chosen."""
        return self.task.num_classes or self.task.require_range()[1] - self.task.require_range()[0]

    @property
    def outside(self) -> int:
        """Number of labels that are invalid for the task."""
        return sum(sum(counter.values()) for counter in self.wrong.values())

    def name(self, value: str | float) -> str | None:
        """The class, or None for an ignored label. Raises :class:`UserError` for one outside the set."""
        if not isinstance(value, str):
            return None if self.task.ignores(value) else self.task.label_names[self.task.class_index(value)]
        if value not in self._class_names:
            self._class_names[value] = (
                None if self.task.ignores(value) else self.task.label_names[self.task.class_index(value)]
            )
        return self._class_names[value]

    def update(self, utterance: Utterance) -> None:
        target, split = self.task.target, utterance.split
        self.found += 1
        self.languages.setdefault(utterance.language, []).append(utterance.id)
        value = utterance.labels.get(target, "votes")
        try:
            if self.task.kind == "classification":
                known = self._answer(utterance)
                if known.truth is not None:
                    self.classes.setdefault(split, Counter())[str(known.truth)] += 1
                self.ties[split] += known.truth is None and known.votes is not None
            elif target in utterance.votes:
                known_answer(self.task, utterance.labels, utterance.votes, utterance.id)
            else:
                self.task.score(value)
        except UserError:
            self.wrong.setdefault(split, Counter())[str(value)] += 1
            shown = self.first.setdefault(split, [])
            if len(shown) < MAX_IDS_SHOWN:
                shown.append(f"{utterance.id} ({value})")

    def _answer(self, utterance: Utterance) -> Known:
        """The class and votes. Raises :class:`UserError` for a label outside the set, in the label or the votes."""
        target = self.task.target
        if target not in utterance.votes:
            return Known(self.name(utterance.labels[target]))
        votes = votes_of_task(self.task, utterance.votes[target], utterance.id)
        if target not in utterance.labels:
            return known_answer(self.task, {}, utterance.votes, utterance.id)
        name = self.name(utterance.labels[target])
        if name is not None and votes is not None and self.task.class_index(name) not in votes.first:
            self.contradicted.setdefault(utterance.split, []).append(f"{utterance.id} ({name})")
        return Known(name)

    def findings(self, single: bool) -> Iterator[Finding]:
        name = self.task.name
        # Most labels of a custom task are invalid for every built-in one; then the task is wrong, not the labels.
        if single and self.outside > MAX_UNKNOWN_LABELS * self.found:
            yield Finding(WARNING, "no task", "", self.outside, [f"{self.task.target} (best: {name})"], ADVICE["no task"])
            return
        yield Finding(INFO, "checked as", "", self.found, [f"{self.task.target}: {name}"], ADVICE["checked as"])
        for language, ids in self.languages.items() if not single else ():
            if language in LANGUAGES and any(language not in label.words for label in self.task.labels):
                shown = [f"{name} has no words in {language}: {', '.join(ids[:MAX_IDS_SHOWN])}"]
                yield Finding(ERROR, "task language", "", len(ids), shown, ADVICE["task language"])
        for split, counter in self.wrong.items():
            yield Finding(ERROR, "label", split, sum(counter.values()), self.first[split], ADVICE["label"])
        for split, ids in self.contradicted.items():
            yield Finding(ERROR, "votes", split, len(ids), ids[:MAX_IDS_SHOWN], ADVICE["votes"])
        for split, count in self.ties.items():
            if count:
                yield Finding(INFO, "tied votes", split, count, [name], ADVICE["tied votes"])
        for split, counter in self.classes.items():
            (label, count), total = counter.most_common(1)[0], sum(counter.values())
            shown = [f"{name}: {label} {count / total:.1%}"]
            yield Finding(INFO, "majority", split, total, shown, ADVICE["majority"])
        if "train" in self.classes:
            for split, counter in self.classes.items():
                unseen = [label for label in counter if label not in self.classes["train"]]
                if unseen:
                    number = sum(counter[label] for label in unseen)
                    yield Finding(WARNING, "unseen class", split, number, unseen[:MAX_IDS_SHOWN], ADVICE["unseen class"])


@dataclass
class _Extent:
    """Smallest and largest value of each feature in training."""

    low: np.ndarray
    high: np.ndarray
    steps: int = 0


class Inspection:
    """Checks utterances one at a time and collects findings.

    Memory use is a few hundred bytes per utterance (ids, hashes, dialogue positions) plus the mean features of at most 4000
    sampled training utterances, never the features of the whole data set.

    Args:
        tasks: whose labels are checked; None picks, for each target, the built-in task that fits best.
        feature_sizes: ``{modality: D}`` declared by a store. feature_names: of the feature dimensions, where known.
        rates: ``{modality: steps per second}`` where known.
    """

    def __init__(
        self,
        tasks: Sequence[Task] | None = None,
        feature_sizes: dict[str, int] | None = None,
        feature_names: dict[str, list[str]] | None = None,
        rates: dict[str, float] | None = None,
    ) -> None:
        self.tasks_given = tasks is not None
        self.labels = [_LabelCheck(task) for task in (builtin_tasks().values() if tasks is None else tasks)]
        self.names = feature_names or {}
        self.rates = rates or {}
        self.counts: dict[str, int] = {}
        self._sizes = dict(feature_sizes or {})
        self._targets: Counter[str] = Counter()
        self._offenders: dict[tuple[str, str, str], tuple[int, list[str]]] = {}
        self._ids: dict[str, int] = {}
        self._forms: dict[int, int] = {}
        self._order: list[str] = []
        self._splits: list[str] = []
        self._contents: dict[int, int] = {}
        self._sentences: dict[int, int] = {}
        self._dialogues: dict[tuple[str, str], list[str]] = {}
        self._speakers: dict[str, list[str]] = {}
        self._turns: set[int] = set()
        self._extents: dict[str, _Extent] = {}
        self._sample: list[tuple[dict[str, np.ndarray], dict[str, str | float]]] = []
        self._training = 0
        self._random = np.random.default_rng(0)

    def _note(self, severity: str, check: str, split: str, shown: str) -> None:
        count, first = self._offenders.get((severity, check, split), (0, []))
        self._offenders[severity, check, split] = (count + 1, [*first, shown] if len(first) < MAX_IDS_SHOWN else first)

    def update(self, utterance: Utterance) -> None:
        """Add one utterance."""
        place = len(self._order)
        self.counts[utterance.split] = self.counts.get(utterance.split, 0) + 1
        if utterance.id in self._ids:
            other = self._splits[self._ids[utterance.id]]
            self._note(ERROR, "duplicate id", _join_splits(other, utterance.split), utterance.id)
        self._ids.setdefault(utterance.id, place)
        self._order.append(utterance.id)
        self._splits.append(utterance.split)
        self._check_lookalikes(utterance, place)
        if utterance.split not in SPLITS or utterance.language not in LANGUAGES:
            shown = f"{utterance.id} ({utterance.split}, {utterance.language})"
            self._note(ERROR, "split or language", utterance.split, shown)
        targets = {*utterance.labels, *utterance.votes}
        self._targets.update(targets)
        for labels in self.labels:
            if labels.task.target in targets:
                labels.update(utterance)
        self._check_text(utterance)
        for flag in utterance.flags:
            self._note(WARNING, flag, utterance.split, utterance.id)
        features = self._check_features(utterance)
        self._check_sharing(utterance, features, place)
        self._check_dialogue(utterance)
        if utterance.split == "train":
            self._update_statistics(utterance, features)

    def _check_lookalikes(self, utterance: Utterance, place: int) -> None:
        """Check for ids that differ only in letter case, width, Unicode form or invisible characters."""
        form = canonical_form(utterance.id)
        for severity, name in ((ERROR, form), (WARNING, form.casefold())):
            other = self._forms.setdefault(_digest(severity.encode(), name.encode("utf-8", "surrogatepass")), place)
            if self._order[other] != utterance.id:
                self._note(severity, "alike", utterance.split, f"id {utterance.id!r}, {self._order[other]!r}")
                return

    def _lookalike_findings(self) -> Iterator[Finding]:
        for kind, names in (("dialogue", [name for name, _ in self._dialogues]), ("speaker", list(self._speakers))):
            for severity, fold in ((ERROR, False), (WARNING, True)):
                if (pair := find_lookalikes(names, fold)) is not None:
                    yield Finding(severity, "alike", "", 2, [f"{kind} {pair[0]!r}, {pair[1]!r}"], ADVICE["alike"])
                    break

    def _check_text(self, utterance: Utterance) -> None:
        media = (utterance.audio, utterance.vision, *(getattr(utterance, c) for c in FEATURE_COLUMNS.values()))
        blank = utterance.text is None or is_blank(utterance.text)
        if blank and all(part is None for part in media):
            self._note(ERROR, "no modality", utterance.split, utterance.id)
        elif utterance.text is not None and blank:
            self._note(WARNING, "empty text", utterance.split, utterance.id)
        elif utterance.text is not None and not utterance.text.isascii():
            if has_hidden_characters(utterance.text):
                self._note(WARNING, "hidden characters", utterance.split, f"{utterance.id} ({utterance.text[:24]!r})")
            if not unicodedata.is_normalized("NFC", utterance.text):
                self._note(WARNING, "unicode form", utterance.split, f"{utterance.id} ({shorten(utterance.text, 24)})")
        if utterance.text is not None and not blank and is_other_language(utterance.text, utterance.language):
            shown = f"{utterance.id} ({utterance.language}: {shorten(utterance.text, 24)})"
            self._note(WARNING, "other language", utterance.split, shown)
        for field in ("text", "speaker", "dialogue_id"):
            if str(getattr(utterance, field)).strip().casefold() in PLACEHOLDERS and getattr(utterance, field) is not None:
                shown = f"{utterance.id} ({field} {getattr(utterance, field)!r})"
                self._note(WARNING, "placeholder", utterance.split, shown)
        for text in (utterance.text, utterance.speaker):
            if text and is_mojibake(text, utterance.language):
                self._note(WARNING, "encoding", utterance.split, f"{utterance.id} ({shorten(text, 24)})")
                break

    def _check_features(self, utterance: Utterance) -> dict[str, np.ndarray]:
        """Check features; returns the valid ones by modality."""
        valid: dict[str, np.ndarray] = {}
        for modality, column in FEATURE_COLUMNS.items():
            features = getattr(utterance, column)
            if features is None:
                continue
            where = f"{utterance.id} ({modality}"
            if features.ndim != 2 or 0 in features.shape:
                self._note(ERROR, "shape", utterance.split, f"{where} {features.shape})")
                continue
            size = self._sizes.setdefault(modality, int(features.shape[1]))
            if features.shape[1] != size:
                self._note(ERROR, "feature size", utterance.split, f"{where} {features.shape[1]}, not {size})")
                continue
            with np.errstate(over="ignore"):
                values = np.asarray(features, dtype=np.float32)
            if not np.isfinite(values).all():
                self._note(ERROR, "not finite", utterance.split, f"{where})")
                continue
            if not values.any():
                self._note(WARNING, "zero features", utterance.split, f"{where})")
            valid[modality] = values
        if {"audio", "vision"} <= set(self.rates) & set(valid):
            lengths = sorted(len(valid[modality]) / self.rates[modality] for modality in ("audio", "vision"))
            if lengths[1] > MIN_DURATION_RATIO * lengths[0] and lengths[1] - lengths[0] > MIN_DURATION_GAP:
                shown = f"{utterance.id} ({lengths[0]:.1f} s, {lengths[1]:.1f} s)"
                self._note(WARNING, "duration", utterance.split, shown)
        return valid

    def _check_sharing(self, utterance: Utterance, features: dict[str, np.ndarray], place: int) -> None:
        """Check for the same recording in two splits by features or files, whatever the language of the text."""
        # Text features are not used: two speakers of the same sentence share them.
        recorded = [modality for modality in ("audio", "vision") if modality in features and features[modality].any()]
        keys = []
        if recorded:
            keys.append(_digest(b"features", *(m.encode() + features[m].tobytes() for m in recorded)))
        if utterance.audio or utterance.vision:
            keys.append(_digest(b"media", str(utterance.audio).encode(), str(utterance.vision).encode()))
        for key in keys:
            other = self._contents.setdefault(key, place)
            if self._splits[other] != utterance.split:
                shown = f"{utterance.id} = {self._order[other]}"
                self._note(ERROR, "same utterance", _join_splits(self._splits[other], utterance.split), shown)
                break
        if utterance.text and utterance.text.strip():
            key = _digest(b"text", utterance.language.encode(), utterance.text.strip().encode("utf-8", "surrogatepass"))
            other = self._sentences.setdefault(key, place)
            if self._splits[other] != utterance.split:
                shown = f"{utterance.id} = {self._order[other]}"
                self._note(INFO, "same sentence", _join_splits(self._splits[other], utterance.split), shown)

    def _check_dialogue(self, utterance: Utterance) -> None:
        if utterance.speaker is not None:
            _add_split(self._speakers, utterance.speaker, utterance.split)
        if utterance.dialogue_id is None:
            return
        _add_split(self._dialogues, (utterance.dialogue_id, utterance.language), utterance.split)
        if utterance.turn is None:
            self._note(ERROR, "turn", utterance.split, f"{utterance.id} (none)")
            return
        key = _digest(
            *(part.encode() for part in (utterance.split, utterance.language, utterance.dialogue_id, str(utterance.turn)))
        )
        if key in self._turns:
            self._note(WARNING, "turn", utterance.split, f"{utterance.id} ({utterance.turn} again)")
        self._turns.add(key)

    def _update_statistics(self, utterance: Utterance, features: dict[str, np.ndarray]) -> None:
        for modality, values in features.items():
            low, high = values.min(axis=0), values.max(axis=0)
            extent = self._extents.setdefault(modality, _Extent(low, high))
            extent.low, extent.high = np.minimum(extent.low, low), np.maximum(extent.high, high)
            extent.steps += len(values)
        if not features or not utterance.labels:
            return
        self._training += 1
        # Vitter's reservoir sampling: every training utterance has the same probability.
        place = self._training - 1 if self._training <= LEAK_CHECK_UTTERANCES else int(self._random.integers(self._training))
        if place >= LEAK_CHECK_UTTERANCES:
            return
        means = {m: np.append(values.mean(axis=0), np.float32(len(values))) for m, values in features.items()}
        entry = (means, dict(utterance.labels))
        if place < len(self._sample):
            self._sample[place] = entry
        else:
            self._sample.append(entry)

    def findings(self) -> list[Finding]:
        """All findings so far, errors first."""
        found = [
            Finding(severity, check, split, count, first, ADVICE[check])
            for (severity, check, split), (count, first) in self._offenders.items()
        ]
        found += self._shared_findings()
        found += self._lookalike_findings()
        found += self._constant_findings()
        chosen = self._matching_tasks()
        for labels in chosen:
            found += labels.findings(single=not self.tasks_given)
            if self.tasks_given or labels.outside <= MAX_UNKNOWN_LABELS * labels.found:
                found += self._leak_findings(labels)
        for labels in self.labels if self.tasks_given else ():
            if not labels.found:
                shown = [f"no utterance has a label {labels.task.target!r}"]
                found.append(Finding(WARNING, "no task", "", 0, shown, f"is {labels.task.name} the task of this data?"))
        if not self.tasks_given:
            known = {labels.task.target for labels in self.labels}
            for target, count in self._targets.items():
                if target not in known:
                    found.append(Finding(INFO, "no task", "", count, [target], ADVICE["no task"]))
        for split in SPLITS:
            if split not in self.counts:
                found.append(Finding(INFO, "missing split", split, 0, [], ADVICE["missing split"]))
        order = {name: place for place, name in enumerate((ERROR, WARNING, INFO))}
        checks = {name: place for place, name in enumerate(ADVICE)}
        return sorted(found, key=lambda finding: (order[finding.severity], checks[finding.check]))

    def _matching_tasks(self) -> list[_LabelCheck]:
        present = [labels for labels in self.labels if labels.found]
        if self.tasks_given:
            return present
        targets = dict.fromkeys(labels.task.target for labels in present)
        return [
            min((o for o in present if o.task.target == target), key=lambda o: (o.outside, o.width)) for target in targets
        ]

    def _shared_findings(self) -> Iterator[Finding]:
        for splits, names in _group_by_splits(self._dialogues).items():
            # Leave-one-speaker-out tests and validates on the two speakers of one dialogue.
            severity = ERROR if "train" in splits else WARNING
            first = [dialogue for dialogue, _ in names[:MAX_IDS_SHOWN]]
            yield Finding(severity, "shared dialogue", splits, len(names), first, ADVICE["shared dialogue"])
        for splits, names in _group_by_splits(self._speakers).items():
            yield Finding(WARNING, "shared speaker", splits, len(names), names[:MAX_IDS_SHOWN], ADVICE["shared speaker"])

    def _feature_name(self, modality: str, dimension: int) -> str:
        names = self.names.get(modality, [])
        if dimension == self._sizes[modality]:
            return f"{modality}: number of steps"
        return f"{modality}[{dimension}]" + (f" {names[dimension]}" if dimension < len(names) else "")

    def _constant_findings(self) -> Iterator[Finding]:
        for modality, extent in self._extents.items():
            if extent.steps < 2:
                continue
            if not extent.low.any() and not extent.high.any():
                shown = [f"{modality}: every feature of every utterance"]
                yield Finding(ERROR, "zero features", "train", len(extent.low), shown, ADVICE["zero features"])
                continue
            constant = np.flatnonzero(extent.low == extent.high)
            if len(constant):
                first = [self._feature_name(modality, int(d)) for d in constant[:MAX_IDS_SHOWN]]
                yield Finding(WARNING, "constant", "train", len(constant), first, ADVICE["constant"])

    def _leak_findings(self, labels: _LabelCheck) -> Iterator[Finding]:
        task = labels.task
        for modality in self._extents:
            rows, truths = [], []
            for means, values in self._sample:
                if modality in means and task.target in values:
                    try:
                        if task.kind == "regression":
                            truth: float | None = task.score(values[task.target])
                        else:
                            name = labels.name(values[task.target])
                            truth = None if name is None else task.label_names.index(name)
                    except UserError:  # reported as its own finding
                        continue
                    if truth is not None:
                        rows.append(means[modality])
                        truths.append(truth)
            if not rows:
                continue
            features, targets = np.stack(rows), np.asarray(truths)
            if task.kind == "regression":
                strength, classes = score_correlation(features, targets), None
            else:
                strength, classes = class_separation(features, targets)
            for severity, low, high in ((ERROR, LEAK_ERROR, np.inf), (WARNING, LEAK_WARNING, LEAK_ERROR)):
                flagged = np.flatnonzero((strength >= low) & (strength < high))
                flagged = flagged[np.argsort(-strength[flagged], kind="stable")]
                if len(flagged):
                    first = [
                        f"{self._feature_name(modality, int(d))} → "
                        + (f"{task.target} r={strength[d]:.3f}" if classes is None else "")
                        + (f"{task.label_names[int(classes[d])]} AUC={strength[d]:.3f}" if classes is not None else "")
                        for d in flagged[:MAX_IDS_SHOWN]
                    ]
                    yield Finding(severity, "leak", "train", len(flagged), first, ADVICE["leak"])


def _split_order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _join_splits(*splits: str) -> str:
    return "+".join(sorted(set(splits), key=_split_order))


def _add_split(table: dict[Any, list[str]], key: Any, split: str) -> None:
    splits = table.setdefault(key, [])
    if split not in splits:
        splits.append(split)


def _group_by_splits(table: dict[Any, list[str]]) -> dict[str, list[Any]]:
    """Group keys that occur in several splits by the combination of splits."""
    found: dict[str, list[Any]] = {}
    for key, splits in table.items():
        if len(splits) > 1:
            found.setdefault(_join_splits(*splits), []).append(key)
    return found
