"""The dataset of questions: which task is asked about which utterance, with its conversation window."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llm_mer.data.missing_values import check_sequence
from llm_mer.data.sampling import describe_draw, draw_rows
from llm_mer.data.schema import Utterance
from llm_mer.data.speaker_effects import KnownSpeakers, SpeakerEffects
from llm_mer.data.store import FEATURE_COLUMNS, UtteranceTable
from llm_mer.data.votes import LabelVotes, known_answer
from llm_mer.errors import UserError
from llm_mer.prompting.languages import check_languages
from llm_mer.prompting.tasks import Task

REPLACEABLE_PARTS: dict[str, tuple[str, ...]] = {
    "text": ("text", FEATURE_COLUMNS["text"]),
    "audio": (FEATURE_COLUMNS["audio"],),
    "vision": (FEATURE_COLUMNS["vision"],),
    "transcript": ("text",),
    "features": tuple(FEATURE_COLUMNS.values()),
}
"""Parts of an utterance that can be taken from another one: a modality, the transcript alone, or all stored features."""


class UtteranceTransform(Protocol):
    """A transform applied to utterances as they are read: a corruption (:mod:`llm_mer.data.corruption`)."""

    def __call__(self, utterance: Utterance) -> Utterance:
        """The changed utterance."""

    @property
    def recomputes_features(self) -> bool:
        """Whether features have to be extracted again."""

    def prepare(self, utterances: Iterable[Utterance], total: int, progress: str | None = None) -> None:
        """Transform these once, so that their features are cached."""


@dataclass(frozen=True)
class Question:
    """One task asked about one utterance: the unit of training, evaluation and inference.

    ``row`` is the utterance's index in the table, ``truth`` its label name or score, None if unknown or if votes tie;
    ``votes`` are the votes on the task's labels, if any (:mod:`llm_mer.data.votes`).
    """

    row: int
    task: Task
    truth: str | float | None
    votes: LabelVotes | None = None


@dataclass
class ContextVectors:
    """One vector per utterance and modality, computed once and shared by every window.

    ``vectors[m]`` is ``(N, D_m)`` float32, ``present[m]`` is ``(N,)`` bool.
    """

    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]

    @property
    def sizes(self) -> dict[str, int]:
        """``{modality: D_m}``."""
        return {modality: int(values.shape[1]) for modality, values in self.vectors.items()}


@dataclass
class Window:
    """Rows of a conversation window in order, and which of them is the target."""

    rows: list[int]
    target: int


@dataclass
class MerDataset:
    """A table of utterances as a dataset of questions.

    Args:
        utterances: a store's split or a list.
        tasks: asked about every utterance that has their target (about every utterance if ``require_truth`` is False); a
            label that the task ignores is not a target, but its utterance stays in conversation windows.
        use_votes: questions carry votes, even without a majority, in which case the truth is unknown. Otherwise only the
            majority is used, as the truth; ``voted`` and ``tied`` count, by task, the utterances that have votes, and those
            left out because of a tie.
        languages: keep only these.
        limit, limit_seed: keep only this many utterances, drawn proportionally over languages
            (:mod:`llm_mer.data.sampling`).
        permutation: ``{part: rows}`` reads that part (:data:`REPLACEABLE_PARTS`) from another row, e.g. a shuffle across
            samples.
        hidden: modalities treated as missing. corruptions: applied to the rest, in this order.
        context_window, bidirectional: shape of :meth:`window`.
        checked: whether the features of every utterance were checked for the model already; nobody does it again.
        speakers_known: what is known of the speakers, where features are normalised by speaker; set before the dataset is
            read for a model that does so (:meth:`know_speakers`).
    """

    utterances: Sequence[Utterance]
    tasks: list[Task]
    languages: list[str] | None = None
    limit: int | None = None
    limit_seed: int = 0
    require_truth: bool = True
    use_votes: bool = True
    permutation: dict[str, np.ndarray] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    corruptions: tuple[UtteranceTransform, ...] = ()
    context_window: int = 8
    bidirectional: bool = False
    context: ContextVectors | None = None
    checked: bool = False
    speakers_known: KnownSpeakers | None = None

    def __post_init__(self) -> None:
        check_languages(self.languages)
        self._read_columns()
        self.rows = [r for r, language in enumerate(self._language) if self.languages is None or language in self.languages]
        self.available = len(self.rows)
        if self.limit is not None:
            self.rows = draw_rows(self.rows, self._language, self.limit, self.limit_seed)
        self.questions = self._build_questions()
        self._position = self._order_dialogues()
        self._text_lengths: list[int] | None = None

    @property
    def drawn(self) -> str | None:
        """Description of the utterances that ``limit`` kept; None if it kept all."""
        if len(self.rows) == self.available:
            return None
        return describe_draw(self.rows, self._language, self.available, self.limit_seed)

    def _read_columns(self) -> None:
        """Descriptive columns of every row, without touching features."""

        self._id, self._language = self._column("id"), self._column("language")
        self._labels, self._dialogue = self._column("labels"), self._column("dialogue_id")
        self._turn, self._speaker = self._column("turn"), self._column("speaker")
        self._votes = self._column("votes")

    def _column(self, name: str) -> list[Any]:
        """A field of every row; a store's without the features."""
        if isinstance(self.utterances, UtteranceTable):
            return self.utterances.column(name)
        return [getattr(utterance, name) for utterance in self.utterances]

    def _build_questions(self) -> list[Question]:
        questions = []
        self.voted: Counter[str] = Counter()
        self.tied: Counter[str] = Counter()
        for row in self.rows:
            for task in self.tasks:
                known = known_answer(task, self._labels[row], self._votes[row], f"utterance {self._id[row]!r}")
                votes = known.votes if self.use_votes else None
                self.voted[task.name] += known.votes is not None
                if known.truth is None and votes is None and self.require_truth:
                    self.tied[task.name] += known.votes is not None
                    continue
                questions.append(Question(row, task, known.truth, votes))
        return questions

    def _order_dialogues(self) -> list[tuple[list[int], int]]:
        """For each row, its dialogue's rows in turn order and its position there; without a dialogue it stands alone."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row, dialogue in enumerate(self._dialogue):
            if dialogue is not None:
                # The same conversation may exist in two languages, whose turns must not mix.
                groups.setdefault((dialogue, self._language[row]), []).append(row)
        positions: list[tuple[list[int], int]] = [([row], 0) for row in range(len(self._id))]
        for (dialogue, _), rows in groups.items():
            turns = [self._turn[row] for row in rows]
            if any(turn is None for turn in turns):
                raise UserError(f"dialogue {dialogue!r} has utterances without `turn`; a dialogue needs its order")
            rows = [row for _, row in sorted(zip(turns, rows, strict=True))]
            for position, row in enumerate(rows):
                positions[row] = (rows, position)
        return positions

    def __len__(self) -> int:
        return len(self.questions)

    def utterance(self, row: int) -> Utterance:
        """The utterance of a row, with permuted and hidden modalities and corruptions applied, normalised by speaker."""
        utterance = self.utterances[row]
        changes: dict[str, Any] = {}
        speakers = dict.fromkeys(FEATURE_COLUMNS, utterance.speaker)
        for part, rows in self.permutation.items():
            other = self.utterances[int(rows[row])]
            changes |= {name: getattr(other, name) for name in REPLACEABLE_PARTS[part]}
            speakers |= {m: other.speaker for m, column in FEATURE_COLUMNS.items() if column in REPLACEABLE_PARTS[part]}
        for modality in self.hidden:
            changes[FEATURE_COLUMNS[modality]] = None
            if modality == "text":
                changes["text"] = None
        if changes:
            utterance = dataclasses.replace(utterance, **changes)
        utterance = self._corrupted(utterance)
        return utterance if self.speakers_known is None else self.speakers_known.normalise(utterance, speakers)

    def _corrupted(self, utterance: Utterance) -> Utterance:
        for corruption in self.corruptions:
            utterance = corruption(utterance)
        return utterance

    def know_speakers(self, effects: Mapping[str, SpeakerEffects]) -> None:
        """Learn from every utterance of the table, corrupted as the model gets them, what distinguishes each speaker.

        Raises:
            UserError: no utterance names its speaker.
        """
        read = (self._corrupted(self.utterances[row]) for row in range(len(self.utterances)))
        where = f"split {self.utterances[0].split!r}" if len(self.utterances) else "the data"
        self.speakers_known = KnownSpeakers.of(read, effects, where)

    def transcripts(self) -> list[tuple[str, str, str | None]]:
        """``(id, language, text)`` of every utterance of the table, unchanged and in order."""
        return list(zip(self._id, self._language, self._column("text"), strict=True))

    def steps(self, modality: str) -> list[int]:
        """Steps of a modality's feature sequence of every utterance of the table, unchanged; 0 where there is none."""
        if isinstance(self.utterances, UtteranceTable):
            return self.utterances.steps(modality)
        sequences = (getattr(utterance, FEATURE_COLUMNS[modality]) for utterance in self.utterances)
        return [0 if sequence is None else len(sequence) for sequence in sequences]

    def text_length(self, row: int) -> int:
        """Number of characters of a row's original transcript; 0 without one."""
        if self._text_lengths is None:
            self._text_lengths = [len(text or "") for _, _, text in self.transcripts()]
        return self._text_lengths[row]

    def position(self, row: int) -> int | None:
        """1-based position of the row in its conversation; None without one."""
        return None if self._dialogue[row] is None else self._position[row][1] + 1

    def languages_present(self) -> list[str]:
        """Languages of the utterances in the dataset."""
        return sorted({self._language[row] for row in self.rows})

    def language(self, row: int) -> str:
        """The language of a row."""
        language: str = self._language[row]
        return language

    def dialogue(self, row: int) -> str | None:
        """The dialogue id of a row, None without one."""
        name: str | None = self._dialogue[row]
        return name

    def identifier(self, row: int) -> str:
        """The id of a row."""
        name: str = self._id[row]
        return name

    def turn(self, row: int) -> int | None:
        """The place of a row in its conversation as the data say it, None without one."""
        turn: int | None = self._turn[row]
        return turn

    def speaker(self, row: int) -> str | None:
        """The speaker of a row, None if unknown."""
        name: str | None = self._speaker[row]
        return name

    def dialogues(self) -> set[str]:
        """Conversations of the utterances that are kept."""
        return {name for row in self.rows if (name := self._dialogue[row]) is not None}

    def speakers(self) -> set[str]:
        """Speakers of the utterances that are kept."""
        return {name for row in self.rows if (name := self._speaker[row]) is not None}

    def media(self) -> set[str]:
        """Files of sound and pictures of the utterances that are kept."""
        columns = [self._column(name) for name in ("audio", "vision")]
        return {file for column in columns for row in self.rows if (file := column[row]) is not None}

    def label_names(self) -> list[str]:
        """Names of all labels and votes of the table's utterances, whether or not a task uses them."""
        return sorted({name for found in (*self._labels, *self._votes) for name in found})

    def window(self, row: int) -> Window:
        """The conversation around a row: the last ``context_window`` utterances up to it, or centred on it."""
        rows, position = self._position[row]
        if not self.bidirectional:
            start, stop = max(0, position - self.context_window + 1), position + 1
        else:
            start = max(0, position - self.context_window // 2)
            stop = min(len(rows), start + self.context_window)
            start = max(0, min(start, stop - self.context_window))
        return Window(rows[start:stop], position - start)

    def history(self, row: int, turns: int) -> list[tuple[str | None, str | None]]:
        """``(speaker, text)`` of up to ``turns`` earlier utterances of the same dialogue, oldest first.

        Texts are permuted, hidden or corrupted as in :meth:`utterance`; otherwise a missing text would be read a turn later.
        """
        rows, position = self._position[row]
        earlier = rows[max(0, position - turns) : position] if turns else []
        return [(self._speaker[r], self.utterance(r).text) for r in earlier]

    def speaker_indices(self, window: Window) -> list[int]:
        """0 for the target's speaker, 1, 2, … for others in order of appearance, -1 where unknown."""
        target = self._speaker[window.rows[window.target]]
        known: dict[str, int] = {} if target is None else {target: 0}
        indices = []
        for row in window.rows:
            speaker = self._speaker[row]
            indices.append(-1 if speaker is None else known.setdefault(speaker, max(known.values(), default=0) + 1))
        return indices

    def shuffled(self, parts: Sequence[str], seed: int) -> MerDataset:
        """The same questions with parts (:data:`REPLACEABLE_PARTS`) taken from other utterances of the same language.

        Every utterance gets another one's features (a derangement within the language, by a cyclic shift of a random
        order), so a model that uses the modality loses the information in it.

        Raises:
            UserError: a language with a single utterance.
        """
        generator = np.random.default_rng(seed)
        rows = np.arange(len(self._id))
        for language in sorted({self._language[r] for r in self.rows}):
            members = np.array([r for r in self.rows if self._language[r] == language])
            if len(members) == 1:
                raise UserError(
                    f"nothing to shuffle: {self._id[members[0]]!r} is the only utterance in language {language!r}; "
                    "take more utterances, or leave the language out"
                )
            order = generator.permutation(members)
            rows[order] = np.roll(order, 1)
        return self._with(permutation={**self.permutation, **dict.fromkeys(parts, rows)})

    def without(self, modalities: Sequence[str]) -> MerDataset:
        """The same questions with the given modalities missing."""
        return self._with(hidden=self.hidden | frozenset(modalities))

    def corrupted(self, corruption: UtteranceTransform) -> MerDataset:
        """The same questions with a further corruption applied to the utterances."""
        return self._with(corruptions=(*self.corruptions, corruption), checked=False, speakers_known=None)

    def _with(self, **changes: Any) -> MerDataset:
        # Context vectors were computed from the unchanged modalities; the new dataset needs its own.
        return dataclasses.replace(self, context=None, **changes)

    def truths(self, task: Task) -> list[str | float]:
        """Known truths of a task over this dataset (for baselines)."""
        return [q.truth for q in self.questions if q.task.name == task.name and q.truth is not None]

    def labels_by_turn(self, task: Task) -> tuple[list[str], list[str], list[str]]:
        """``(labels, speakers, dialogues)`` of a classification task in turn order, for the estimate of p0.

        Labels that the task ignores are included as they are in the data, since a speaker shifts to them and back.
        Utterances without a dialogue, a speaker or a label are left out. Where ``limit`` removed utterances, those before
        and after the gap are not consecutive, and count as two dialogues.
        """
        found = []
        kept = set(self.rows)
        for row in self.rows:
            dialogue, speaker, value = self._dialogue[row], self._speaker[row], self._labels[row].get(task.target)
            if dialogue is None or speaker is None or value is None:
                continue
            where = f"utterance {self._id[row]!r}"
            label = str(value).strip() if task.ignores(value) else task.label_names[task.class_index(value, where)]
            # As for windows, the same conversation in another language counts as another one.
            rows, position = self._position[row]
            gaps = 0 if len(kept) == self.available else sum(earlier not in kept for earlier in rows[:position])
            name = f"{dialogue}/{self._language[row]}" + (f"/{gaps}" if gaps else "")
            found.append((name, self._turn[row], label, speaker))
        found.sort(key=lambda entry: entry[:2])
        return [entry[2] for entry in found], [entry[3] for entry in found], [entry[0] for entry in found]


def utterance_vector(steps: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of a normalised sequence: ``(T, D) -> (2 D,)``."""
    return np.concatenate([steps.mean(axis=0), steps.std(axis=0)])


def build_context_vectors(
    dataset: MerDataset,
    normalise: Callable[[str, np.ndarray], np.ndarray],
    embed_text: Callable[[list[str]], np.ndarray] | None,
    modalities: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    feature_sizes: Mapping[str, int] | None = None,
) -> ContextVectors:
    """Compute one vector per utterance: mean and standard deviation over time of the normalised sequence.

    A modality whose sequences all have a single step (utterance-level features) keeps just that step. Text comes from
    ``embed_text`` (mean token embedding of the backbone) when given, else from stored text features. Each utterance is
    encoded once, however many windows contain it.

    Args:
        sizes: vector sizes that an adapter was built for. They decide, instead of the sequence lengths, whether a vector
            includes the deviation (0 for one step) or is the mean alone.
        feature_sizes: step sizes that ``normalise`` expects.

    Raises:
        UserError: steps or vectors of the wrong size, or features with NaN or infinity.
    """
    sizes, feature_sizes = sizes or {}, feature_sizes or {}
    total = len(dataset.utterances)
    single = dict.fromkeys(modalities, True)
    collected: dict[str, list[np.ndarray | None]] = {m: [None] * total for m in modalities}
    texts: list[str | None] = [None] * total
    for row in range(total):
        utterance = dataset.utterance(row)
        texts[row] = utterance.text
        for modality in modalities:
            if modality == "text" and embed_text is not None:
                continue
            features = getattr(utterance, FEATURE_COLUMNS[modality])
            if features is None:
                continue
            if not dataset.checked:
                check_sequence(
                    features, feature_sizes.get(modality), f"utterance {utterance.id!r}: {FEATURE_COLUMNS[modality]}"
                )
            normal = normalise(modality, features)
            single[modality] &= normal.shape[0] == 1
            collected[modality][row] = utterance_vector(normal)
    vectors, present = {}, {}
    for modality in modalities:
        known = np.array([v is not None for v in collected[modality]], dtype=bool)
        if modality == "text" and embed_text is not None:
            known = np.array([bool(t) for t in texts], dtype=bool)
            rows = np.flatnonzero(known)
            embedded = embed_text([texts[r] or "" for r in rows])
            matrix = np.zeros((total, embedded.shape[1]), dtype=np.float32)
            matrix[rows] = embedded
        else:
            if not known.any():
                continue
            size = next(v.shape[0] for v in collected[modality] if v is not None)
            matrix = np.zeros((total, size), dtype=np.float32)
            for row, vector in enumerate(collected[modality]):
                if vector is not None:
                    matrix[row] = vector
            if sizes.get(modality, size // 2 if single[modality] else size) == size // 2:
                matrix = matrix[:, : size // 2]
        if matrix.shape[1] != sizes.get(modality, matrix.shape[1]):
            raise UserError(
                f"utterance vectors of {modality} have size {matrix.shape[1]}, the model was trained on {sizes[modality]}"
            )
        vectors[modality], present[modality] = matrix, known
    return ContextVectors(vectors, present)
