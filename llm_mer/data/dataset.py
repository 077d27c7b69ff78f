"""Questions about utterances: which task is asked of which utterance, and the conversation around it."""

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
from llm_mer.data.store import FEATURE_COLUMNS, UtteranceTable
from llm_mer.data.votes import LabelVotes, known_answer
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task

PARTS: dict[str, tuple[str, ...]] = {
    "text": ("text", FEATURE_COLUMNS["text"]),
    "audio": (FEATURE_COLUMNS["audio"],),
    "vision": (FEATURE_COLUMNS["vision"],),
    "transcript": ("text",),
    "features": tuple(FEATURE_COLUMNS.values()),
}
"""What of an utterance can come from another one: a modality, the transcript alone, or every stored feature sequence."""


class UtteranceTransform(Protocol):
    """What changes utterances as they are read: a corruption (:mod:`llm_mer.data.corruption`)."""

    def __call__(self, utterance: Utterance) -> Utterance:
        """The changed utterance."""

    @property
    def recomputes_features(self) -> bool:
        """Whether features have to be made again."""

    def prepare(self, utterances: Iterable[Utterance], total: int, progress: str | None = None) -> None:
        """Change these once, so that their features wait in the cache."""


@dataclass(frozen=True)
class Question:
    """One task asked of one utterance: the unit of training, evaluation and inference.

    ``row`` is the utterance's place in the table, ``truth`` its label name or score, None when unknown
    or where votes tie; ``votes`` on the task's labels, where there are some (:mod:`llm_mer.data.votes`).
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
    """A table of utterances seen as questions.

    Args:
        utterances: a store's split or a list.
        tasks: asked of every utterance that has their target (of every utterance when ``require_truth`` is False); a label
            the task ignores is no target, but its utterance stays in windows.
        use_votes: questions carry votes, also where they have no majority, so that no truth is known. Otherwise their
            majority is the truth and all that is taken of them; ``voted`` and ``tied`` count, by task, the utterances that
            have votes, and those left out because they tie.
        languages: keep only these.
        limit, limit_seed: keep only so many utterances, drawn over languages (:mod:`llm_mer.data.sampling`).
        permutation: ``{part: rows}`` reads that part (:data:`PARTS`) from another row, e.g. a shuffle across samples.
        hidden: modalities treated as missing. corruptions: damage to what is left, in this order.
        context_window, bidirectional: shape of :meth:`window`.
        checked: whether the features of every utterance were checked for the model already; nobody does it again.
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

    def __post_init__(self) -> None:
        self._read_columns()
        self.rows = [r for r, language in enumerate(self._language) if self.languages is None or language in self.languages]
        self.available = len(self.rows)
        if self.limit is not None:
            self.rows = draw_rows(self.rows, self._language, self.limit, self.limit_seed)
        self.questions = self._build_questions()
        self._position = self._order_dialogues()
        self._lengths: list[int] | None = None

    @property
    def drawn(self) -> str | None:
        """What ``limit`` left of the utterances, in words; None where it left all."""
        if len(self.rows) == self.available:
            return None
        return describe_draw(self.rows, self._language, self.available, self.limit_seed)

    def _read_columns(self) -> None:
        """Descriptive columns of every row, without touching features."""

        def column(name: str) -> list[Any]:
            if isinstance(self.utterances, UtteranceTable):
                return self.utterances.column(name)
            return [getattr(u, name) for u in self.utterances]

        self._id, self._language = column("id"), column("language")
        self._labels, self._dialogue = column("labels"), column("dialogue_id")
        self._turn, self._speaker = column("turn"), column("speaker")
        self._votes = column("votes")

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
        """For each row, its dialogue's rows in turn order and its place there; no dialogue is one of its own."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row, dialogue in enumerate(self._dialogue):
            if dialogue is not None:
                # The same conversation may exist in two languages; turns of one must not enter the other.
                groups.setdefault((dialogue, self._language[row]), []).append(row)
        places: list[tuple[list[int], int]] = [([row], 0) for row in range(len(self._id))]
        for (dialogue, _), rows in groups.items():
            turns = [self._turn[row] for row in rows]
            if any(turn is None for turn in turns):
                raise UserError(f"dialogue {dialogue!r} has utterances without `turn`; a dialogue needs its order")
            rows = [row for _, row in sorted(zip(turns, rows, strict=True))]
            for place, row in enumerate(rows):
                places[row] = (rows, place)
        return places

    def __len__(self) -> int:
        return len(self.questions)

    def utterance(self, row: int) -> Utterance:
        """The utterance of a row, with permuted and hidden modalities and corruptions applied."""
        utterance = self.utterances[row]
        changes: dict[str, Any] = {}
        for part, rows in self.permutation.items():
            other = self.utterances[int(rows[row])]
            changes |= {name: getattr(other, name) for name in PARTS[part]}
        for modality in self.hidden:
            changes[FEATURE_COLUMNS[modality]] = None
            if modality == "text":
                changes["text"] = None
        if changes:
            utterance = dataclasses.replace(utterance, **changes)
        for corruption in self.corruptions:
            utterance = corruption(utterance)
        return utterance

    def transcripts(self) -> list[tuple[str, str, str | None]]:
        """``(id, language, text)`` of every utterance of the table as it is there, one after another."""
        if isinstance(self.utterances, UtteranceTable):
            texts = self.utterances.column("text")
        else:
            texts = [utterance.text for utterance in self.utterances]
        return list(zip(self._id, self._language, texts, strict=True))

    def text_length(self, row: int) -> int:
        """Characters of a row's own transcript, whatever is changed about it; 0 without one."""
        if self._lengths is None:
            self._lengths = [len(text or "") for _, _, text in self.transcripts()]
        return self._lengths[row]

    def position(self, row: int) -> int | None:
        """1 for the first utterance of the row's conversation in the table, 2 for the next, …; None without one."""
        return None if self._dialogue[row] is None else self._position[row][1] + 1

    def languages_present(self) -> list[str]:
        """Languages of the utterances that are asked about."""
        return sorted({self._language[row] for row in self.rows})

    def language(self, row: int) -> str:
        """The language of a row."""
        language: str = self._language[row]
        return language

    def dialogue(self, row: int) -> str | None:
        """The conversation of a row, None without one."""
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
        """Who speaks in a row, None where unknown."""
        name: str | None = self._speaker[row]
        return name

    def label_names(self) -> list[str]:
        """Names of the labels and votes that any utterance of the table has, known to a task or not."""
        return sorted({name for found in (*self._labels, *self._votes) for name in found})

    def window(self, row: int) -> Window:
        """The conversation around a row: the last ``context_window`` utterances up to it, or centred on it."""
        rows, place = self._position[row]
        if not self.bidirectional:
            start, stop = max(0, place - self.context_window + 1), place + 1
        else:
            start = max(0, place - self.context_window // 2)
            stop = min(len(rows), start + self.context_window)
            start = max(0, min(start, stop - self.context_window))
        return Window(rows[start:stop], place - start)

    def history(self, row: int, turns: int) -> list[tuple[str | None, str | None]]:
        """``(speaker, text)`` of up to ``turns`` earlier utterances of the same dialogue, oldest first.

        Texts are permuted, hidden or corrupted as in :meth:`utterance`, or a missing one would still be read a turn later.
        """
        rows, place = self._position[row]
        earlier = rows[max(0, place - turns) : place] if turns else []
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
        """The same questions with the given parts (:data:`PARTS`) taken from other utterances of the same language.

        Every utterance gets another's features (a derangement within the language, by a cyclic shift of a random
        order), so a model that uses the modality must lose what it knew from it.

        Raises:
            UserError: a language with a single utterance has nobody to take features from.
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
        """The same questions about utterances damaged by a corruption, after those they have already."""
        return self._with(corruptions=(*self.corruptions, corruption), checked=False)

    def _with(self, **changes: Any) -> MerDataset:
        # Context vectors hold the modalities as they were; the changed dataset needs its own.
        return dataclasses.replace(self, context=None, **changes)

    def truths(self, task: Task) -> list[str | float]:
        """Known truths of a task over this dataset (for baselines)."""
        return [q.truth for q in self.questions if q.task.name == task.name and q.truth is not None]

    def labels_by_turn(self, task: Task) -> tuple[list[str], list[str], list[str]]:
        """``(labels, speakers, dialogues)`` of a classification task in turn order, for the estimate of p0.

        Labels the task ignores are among them, as the data say them: a speaker shifts to them and back. Utterances
        without a dialogue, a speaker or a label are not. Where ``limit`` left utterances out, what stands on either side
        does not follow one another: it counts as two dialogues.
        """
        found = []
        kept = set(self.rows)
        for row in self.rows:
            dialogue, speaker, value = self._dialogue[row], self._speaker[row], self._labels[row].get(task.target)
            if dialogue is None or speaker is None or value is None:
                continue
            where = f"utterance {self._id[row]!r}"
            label = str(value).strip() if task.ignores(value) else task.label_names[task.class_index(value, where)]
            # As for windows, a conversation in another language is another one.
            rows, place = self._position[row]
            gaps = 0 if len(kept) == self.available else sum(earlier not in kept for earlier in rows[:place])
            name = f"{dialogue}/{self._language[row]}" + (f"/{gaps}" if gaps else "")
            found.append((name, self._turn[row], label, speaker))
        found.sort(key=lambda entry: entry[:2])
        return [entry[2] for entry in found], [entry[3] for entry in found], [entry[0] for entry in found]


def build_context_vectors(
    dataset: MerDataset,
    normalise: Callable[[str, np.ndarray], np.ndarray],
    embed_text: Callable[[list[str]], np.ndarray] | None,
    modalities: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    feature_sizes: Mapping[str, int] | None = None,
) -> ContextVectors:
    """One vector per utterance: mean and standard deviation over time of the normalised sequence.

    A modality whose sequences are all one step long (utterance-level features) keeps just that step. Text comes from
    ``embed_text`` (mean token embedding of the backbone) when given, else from stored text features. Each utterance is
    encoded once, however many windows hold it.

    Args:
        sizes: of the vectors an adapter was built for. They decide instead of these sequences' lengths whether a vector
            has the deviation (0 for one step) or is the mean alone.
        feature_sizes: of the steps ``normalise`` knows.

    Raises:
        UserError: steps or vectors of another size, or features with NaN or infinity.
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
            collected[modality][row] = np.concatenate([normal.mean(axis=0), normal.std(axis=0)])
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
