"""Padding prepared samples into a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_mer.data.dataset import MerDataset, Question, utterance_vector
from llm_mer.data.schema import Utterance
from llm_mer.model.outputs import find_label_positions
from llm_mer.model.packing import Group, pack_groups
from llm_mer.model.processing_mer import MerProcessor, PreparedSample, PreparedUtterance, PromptIds
from llm_mer.model.read_out import read_out_target
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.prompting.rendering import HistoryTurn
from llm_mer.prompting.tasks import Task


@dataclass
class MerBatch:
    """A batch. Tensor names are the model's own keyword arguments.

    Attributes:
        input_ids, attention_mask, labels: ``(B, L)``; labels are -100 outside the answer. pseudo_token_mask: ``(B, L)``.
        label_positions: ``(N,)`` where labels are, one row after another; see ``MerForConditionalGeneration.forward``.
        sample_ids, position_ids: ``(R, L)`` in packed batches alone, whose ``(R, L)`` tensors have several samples a row:
            the sample of each position, -1 at padding, and its position within it. They need no attention_mask.
        shared_prefix_ids: ``(R, L)`` in packed batches some of whose samples share a prefix. Those are numbered from
            ``B`` on in sample_ids; at each position of a sample stands the number of its prefix, else -2.
        text_ids: ``(B, T_t)``. ``*_features``: ``(B, T_m, D_m)``. ``*_mask``: ``(B, T_m)``, False rows for a missing one.
        context_*: see :class:`llm_mer.adapters.base.ConversationContext`.
        language_ids: ``(B,)`` indices in ``LANGUAGES``, and after them those of shared prefixes.
        class_targets: ``(B,)``. score_targets: ``(B,)``.
        read_out_tasks, read_out_targets: ``(B,)`` index of each sample's task among the processor's, and what a read-out
            learns of it (:func:`llm_mer.model.read_out.read_out_target`); None without one. read_out_votes: ``(B, C)`` of
            :func:`vote_shares`, None where no question has votes.
    """

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    pseudo_token_mask: Tensor | None = None
    labels: Tensor | None = None
    label_positions: Tensor | None = None
    sample_ids: Tensor | None = None
    position_ids: Tensor | None = None
    shared_prefix_ids: Tensor | None = None
    text_ids: Tensor | None = None
    text_features: Tensor | None = None
    text_mask: Tensor | None = None
    audio_features: Tensor | None = None
    audio_mask: Tensor | None = None
    vision_features: Tensor | None = None
    vision_mask: Tensor | None = None
    context_mask: Tensor | None = None
    context_speakers: Tensor | None = None
    context_target: Tensor | None = None
    context_text: Tensor | None = None
    context_text_mask: Tensor | None = None
    context_audio: Tensor | None = None
    context_audio_mask: Tensor | None = None
    context_vision: Tensor | None = None
    context_vision_mask: Tensor | None = None
    language_ids: Tensor | None = None
    class_targets: Tensor | None = None
    score_targets: Tensor | None = None
    read_out_tasks: Tensor | None = None
    read_out_targets: Tensor | None = None
    read_out_votes: Tensor | None = None

    def model_inputs(self) -> dict[str, Tensor]:
        """The tensors that exist, by keyword argument (what trainers and ``generate`` pass on)."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def to(self, device: torch.device | str) -> MerBatch:
        """The same batch on another device."""
        return MerBatch(**{name: value.to(device) for name, value in self.model_inputs().items()})


def pad_sequences(rows: Sequence[np.ndarray | None], size: int) -> tuple[Tensor, Tensor]:
    """``(T_i, D)`` arrays to ``(B, max T, D)`` and a mask ``(B, max T)``; None becomes an all-False row."""
    longest = max([row.shape[0] for row in rows if row is not None], default=0) or 1
    features = torch.zeros(len(rows), longest, size)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row is not None:
            features[i, : row.shape[0]] = torch.from_numpy(np.ascontiguousarray(row))
            mask[i, : row.shape[0]] = True
    return features, mask


def pad_ids(rows: Sequence[Sequence[int]], fill: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids to ``(B, max L)`` and a mask."""
    longest = max((len(row) for row in rows), default=0) or 1
    ids = torch.full((len(rows), longest), fill, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(list(row), dtype=torch.long)
        mask[i, columns] = True
    return ids, mask


def pad_prompts(prompts: Sequence[PromptIds], fill: int, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts to ids, a mask of 0 and 1, and where pseudo tokens stand: all ``(B, max L)``."""
    ids, mask = pad_ids([prompt.ids for prompt in prompts], fill, left)
    pseudo_tokens = torch.zeros(ids.shape, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        start = prompt.start + (ids.shape[1] - len(prompt.ids) if left else 0)
        pseudo_tokens[i, start : start + prompt.count] = True
    return ids, mask.long(), pseudo_tokens


def vote_shares(questions: Sequence[Question], count: int) -> Tensor | None:
    """``(B, count)`` shares of the votes of each question, padded with 0; NaN for one without votes, None without any."""
    if all(question.votes is None for question in questions):
        return None
    shares = torch.zeros(len(questions), count)
    for row, question in enumerate(questions):
        if question.votes is None:
            shares[row] = torch.nan
        else:
            own = question.votes.shares
            shares[row, : len(own)] = torch.from_numpy(own)
    return shares


def _read_out_target(question: Question) -> float:
    """What a read-out learns; of votes any of the most frequent labels, which is not read."""
    if question.votes is not None:
        return float(question.votes.first[0])
    assert question.truth is not None
    return read_out_target(question.task, question.truth)


@dataclass
class UtteranceBatch:
    """Utterances and what is asked about them, at inference.

    Attributes:
        utterances: as they were read, corruptions applied.
        inputs: what the adapter reads of them, and their languages.
        prompts: of each task, one an utterance; empty for an adapter alone.
        cut: what of each utterance is longer than the adapter reads (:class:`PreparedUtterance`).
        training_distances: how far each is from the training data (:meth:`MerProcessor.training_distances`).
    """

    utterances: list[Utterance]
    inputs: MerBatch
    prompts: list[list[PromptIds]]
    cut: list[dict[str, tuple[int, int]]]
    training_distances: list[dict[str, float]]


@dataclass
class MerCollator:
    """Questions of one dataset to batches of training, and its utterances to batches of inference.

    Called by a trainer with rows ``{"question": index}``; :meth:`batch` pads prompts and answers on the right, and prompts
    alone on the left. Inference takes :meth:`utterances` with all that is asked about them. With
    ``packing_length`` prompts with answers share rows of at most so many tokens and, with ``share_prefixes`` (which needs
    attention under a mask), what they begin with before the pseudo tokens. ``read_out`` adds a read-out's targets.
    """

    dataset: MerDataset
    processor: MerProcessor
    uses_context: bool = False
    packing_length: int | None = None
    share_prefixes: bool = True
    read_out: bool = False

    def __post_init__(self) -> None:
        if self.processor.speaker_effects and self.dataset.speakers_known is None:
            raise ValueError("the model normalises features by speaker: dataset.know_speakers comes first")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        questions = [self.dataset.questions[int(row["question"])] for row in rows]
        return self.batch(questions, with_answer=True).model_inputs()

    def history(self, utterance: Utterance, row: int, tasks: Sequence[Task]) -> list[HistoryTurn]:
        """As many earlier turns of a row's dialogue as any of the tasks' prompts shows."""
        turns = max(self.processor.context_turns(task, utterance.language) for task in tasks)
        return [HistoryTurn(speaker, text) for speaker, text in self.dataset.history(row, turns)]

    def prepare(self, question: Question, with_answer: bool) -> PreparedSample:
        """Look one question up and prepare it."""
        return self._prepare_all([question], with_answer)[0]

    def _prepare_all(self, questions: Sequence[Question], with_answer: bool) -> list[PreparedSample]:
        """Prepare questions; an utterance that several are about is read, checked and normalised once."""
        read: dict[int, tuple[Utterance, PreparedUtterance]] = {}
        samples = []
        for question in questions:
            if question.row not in read:
                utterance = self.dataset.utterance(question.row)
                read[question.row] = (utterance, self.processor.prepare_utterance(utterance, self.dataset.checked))
            utterance, prepared = read[question.row]
            history = self.history(utterance, question.row, [question.task])
            truth = question.truth if with_answer else None
            samples.append(self.processor.prepare(utterance, question.task, truth, history, prepared))
        return samples

    def utterances(
        self,
        rows: Sequence[int],
        tasks: Sequence[Task],
        cutters: Sequence[Callable[[Utterance], Utterance] | None] | None = None,
    ) -> UtteranceBatch:
        """Utterances by their rows, each read once, and a prompt of each task about each.

        Args:
            cutters: what takes the part of each utterance that is read; None for the whole.
        """
        read = [self.dataset.utterance(row) for row in rows]
        if cutters is not None:
            read = [u if cutter is None else cutter(u) for u, cutter in zip(read, cutters, strict=True)]
        inputs = MerBatch()
        checked = self.dataset.checked
        prepared = [self.processor.prepare_utterance(utterance, checked) for utterance in read]
        self._pad_features(inputs, prepared)
        prompts: list[list[PromptIds]] = [[] for _ in tasks]
        if self.processor.tokenizer is not None:
            ids = [LANGUAGES.index(utterance.language) for utterance in read]
            inputs.language_ids = torch.tensor(ids, dtype=torch.long)
            for row, utterance in zip(rows, read, strict=True):
                history = self.history(utterance, row, tasks)
                for task, found in zip(tasks, prompts, strict=True):
                    prompt = self.processor.prepare_prompt(utterance, task, history)
                    assert prompt is not None
                    found.append(prompt)
        if self.uses_context:
            self._pad_context(inputs, rows)
            if cutters is not None:
                self._set_target_vectors(inputs, prepared, [cutter is not None for cutter in cutters])
        distances = [self.processor.training_distances(utterance) for utterance in read]
        return UtteranceBatch(read, inputs, prompts, [found.cut for found in prepared], distances)

    def length(self, question: Question) -> int:
        """Tokens of a question with its answer; 0 for an adapter alone."""
        sample = self.prepare(question, True)
        return 0 if sample.prompt is None else len(sample.prompt.ids) + len(sample.answer)

    def batch(self, questions: Sequence[Question], with_answer: bool) -> MerBatch:
        """Prepare and pad, or pack; in a packed batch samples stand in the order of their rows."""
        samples = self._prepare_all(questions, with_answer)
        batch = MerBatch()
        if self.processor.tokenizer is not None:
            languages = [self.dataset.language(question.row) for question in questions]
            if self.packing_length is not None and with_answer:
                rows = self._rows(samples, languages)
                order = [index for row in rows for group in row for index in group.samples]
                questions, samples = [questions[i] for i in order], [samples[i] for i in order]
                begun = [group.samples[0] for row in rows for group in row if group.shared]
                languages = [languages[i] for i in [*order, *begun]]
                self._pack_prompts(batch, samples, rows)
            else:
                self._pad_prompts(batch, samples, with_answer)
            if batch.labels is not None:
                batch.label_positions = find_label_positions(batch.labels)
            batch.language_ids = torch.tensor([LANGUAGES.index(language) for language in languages], dtype=torch.long)
        self._pad_inputs(batch, questions, samples, with_answer)
        return batch

    def _pad_inputs(
        self, batch: MerBatch, questions: Sequence[Question], samples: Sequence[PreparedSample], with_answer: bool
    ) -> None:
        """What the adapter reads and, with answers, learns from."""
        self._pad_features(batch, samples)
        if self.uses_context:
            self._pad_context(batch, [question.row for question in questions])
        if with_answer:
            batch.class_targets = torch.tensor([s.class_target for s in samples], dtype=torch.long)
            batch.score_targets = torch.tensor([s.score_target for s in samples], dtype=torch.float32)
            if self.read_out:
                numbers = {task.name: number for number, task in enumerate(self.processor.tasks)}
                batch.read_out_tasks = torch.tensor([numbers[question.task.name] for question in questions])
                batch.read_out_targets = torch.tensor([_read_out_target(question) for question in questions])
                most = max(task.num_classes for task in self.processor.tasks)
                batch.read_out_votes = vote_shares(questions, most)

    def _pad_features(self, batch: MerBatch, samples: Sequence[PreparedUtterance | PreparedSample]) -> None:
        for modality, size in self.processor.feature_sizes.items():
            if modality == "text" and self.processor.text_source == "backbone":
                continue
            features, mask = pad_sequences([sample.features.get(modality) for sample in samples], size)
            setattr(batch, f"{modality}_features", features)
            setattr(batch, f"{modality}_mask", mask)
        if self.processor.text_source == "backbone" and "text" in self.processor.feature_sizes:
            batch.text_ids, batch.text_mask = pad_ids([s.text_ids or [] for s in samples], self.processor.filler_id)

    def _pad_prompts(self, batch: MerBatch, samples: list[PreparedSample], with_answer: bool) -> None:
        left = not with_answer
        rows = []
        for sample in samples:
            assert sample.prompt is not None
            answer = sample.answer if with_answer else []
            rows.append(PromptIds(sample.prompt.ids + answer, sample.prompt.start, sample.prompt.count))
        fill = self.processor.filler_id
        batch.input_ids, batch.attention_mask, batch.pseudo_token_mask = pad_prompts(rows, fill, left)
        if with_answer:
            batch.labels = torch.full(batch.input_ids.shape, -100, dtype=torch.long)
            for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
                begin = len(row.ids) - len(sample.answer)
                batch.labels[i, begin : len(row.ids)] = torch.tensor(sample.answer, dtype=torch.long)

    def _rows(self, samples: list[PreparedSample], languages: list[str]) -> list[list[Group]]:
        """Which samples stand in which row, and which of them behind one shared prefix."""
        prefixes, shared, lengths = [], [], []
        for sample, language in zip(samples, languages, strict=True):
            assert sample.prompt is not None
            # Of one language, since the weights that read it may differ by language.
            prefix = (language, *sample.prompt.ids[: sample.prompt.start])
            prefixes.append(prefix if self.share_prefixes else None)
            shared.append(sample.prompt.start)
            lengths.append(len(sample.prompt.ids) + len(sample.answer))
        assert self.packing_length is not None
        return pack_groups(prefixes, shared, lengths, self.packing_length)

    def _pack_prompts(self, batch: MerBatch, samples: list[PreparedSample], rows: list[list[Group]]) -> None:
        """Prompts and answers one after another in rows; ``samples`` are in the order in which the rows name them."""
        columns: dict[str, list[list[int]]] = {
            name: [[] for _ in rows] for name in ("ids", "labels", "pseudo_tokens", "samples", "positions", "prefixes")
        }
        number, prefix_number = 0, len(samples)

        def put(
            row: int, ids: list[int], labels: list[int], pseudo_tokens: range, owner: int, start: int, prefix: int
        ) -> None:
            columns["ids"][row] += ids
            columns["labels"][row] += labels
            columns["pseudo_tokens"][row] += [int(start + i in pseudo_tokens) for i in range(len(ids))]
            columns["samples"][row] += [owner] * len(ids)
            columns["positions"][row] += range(start, start + len(ids))
            columns["prefixes"][row] += [prefix] * len(ids)

        for row, groups in enumerate(rows):
            for group in groups:
                prefix = -2
                if group.shared:
                    prompt = samples[number].prompt
                    assert prompt is not None
                    put(row, prompt.ids[: group.shared], [-100] * group.shared, range(0), prefix_number, 0, -2)
                    prefix, prefix_number = prefix_number, prefix_number + 1
                for _ in group.samples:
                    prompt, answer = samples[number].prompt, samples[number].answer
                    assert prompt is not None
                    rest = prompt.ids[group.shared :]
                    pseudo_tokens = range(prompt.start, prompt.start + prompt.count)
                    put(row, rest + answer, [-100] * len(rest) + answer, pseudo_tokens, number, group.shared, prefix)
                    number += 1

        def padded(name: str, fill: int) -> Tensor:
            return pad_ids(columns[name], fill)[0]

        batch.input_ids, batch.labels = padded("ids", self.processor.filler_id), padded("labels", -100)
        batch.pseudo_token_mask = padded("pseudo_tokens", 0).bool()
        batch.sample_ids, batch.position_ids = padded("samples", -1), padded("positions", 0)
        if prefix_number > len(samples):
            batch.shared_prefix_ids = padded("prefixes", -2)

    @staticmethod
    def _set_target_vectors(batch: MerBatch, samples: Sequence[PreparedUtterance], cut_out: Sequence[bool]) -> None:
        """Vectors of the part that is read in place of those of the whole, for utterances of which a part is cut out."""
        assert batch.context_target is not None
        for i, sample in enumerate(samples):
            target = int(batch.context_target[i])
            for modality in ("audio", "vision") if cut_out[i] else ():
                values, mask = getattr(batch, f"context_{modality}"), getattr(batch, f"context_{modality}_mask")
                if values is None:
                    continue
                steps = sample.features.get(modality)
                mask[i, target] = steps is not None
                vector = torch.zeros(values.shape[-1]) if steps is None else torch.from_numpy(utterance_vector(steps))
                values[i, target] = vector[: values.shape[-1]]

    def _pad_context(self, batch: MerBatch, rows: Sequence[int]) -> None:
        context = self.dataset.context
        if context is None:
            raise ValueError("this adapter reads conversation context, but no context vectors were computed")
        windows = [self.dataset.window(row) for row in rows]
        longest = max(len(window.rows) for window in windows)
        batch.context_mask = torch.zeros(len(windows), longest, dtype=torch.bool)
        batch.context_speakers = torch.full((len(windows), longest), -1, dtype=torch.long)
        batch.context_target = torch.tensor([window.target for window in windows], dtype=torch.long)
        for i, window in enumerate(windows):
            batch.context_mask[i, : len(window.rows)] = True
            batch.context_speakers[i, : len(window.rows)] = torch.tensor(self.dataset.speaker_indices(window))
        for modality, vectors in context.vectors.items():
            values = torch.zeros(len(windows), longest, vectors.shape[1])
            mask = torch.zeros(len(windows), longest, dtype=torch.bool)
            for i, window in enumerate(windows):
                values[i, : len(window.rows)] = torch.from_numpy(vectors[window.rows])
                mask[i, : len(window.rows)] = torch.from_numpy(context.present[modality][window.rows])
            setattr(batch, f"context_{modality}", values)
            setattr(batch, f"context_{modality}_mask", mask)
