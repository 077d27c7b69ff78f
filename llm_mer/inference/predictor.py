"""Batched answers to the questions of a data set: always valid, with their probabilities."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_mer.adapters.base import FusionOutput
from llm_mer.adapters.context_window import vector_sizes
from llm_mer.data.dataset import MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.distributed.progress import track_progress
from llm_mer.distributed.sharded_parameters import is_sharded
from llm_mer.errors import UserError, first_line, is_out_of_memory
from llm_mer.inference.answer_values import (
    ANSWERS,
    POOLED,
    READ_OUT,
    SCORED,
    PoolWeights,
    fill_distribution,
    fill_read_out,
    pooled_answer,
)
from llm_mer.inference.input_warnings import InputWarnings
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.unread import unread_parts
from llm_mer.inference.windows import ClipWindow, ClipWindows, pool_windows
from llm_mer.model.collator import MerCollator, UtteranceBatch
from llm_mer.model.context_vectors import attach_context
from llm_mer.model.modeling_mer import (
    FUSION_KEYS,
    MerForConditionalGeneration,
    conditional_generation_of,
    fusion_adapter_of,
)
from llm_mer.model.output_head import reads_in_float32
from llm_mer.model.processing_mer import MerProcessor, PromptIds
from llm_mer.model.read_out import columns_of
from llm_mer.model.step_limits import StepLimits
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.answer_tree import AnswerTree, has_prefix_conflict
from llm_mer.scoring.engines.base import MAX_ANSWER_TOKENS, Engine
from llm_mer.scoring.engines.transformers_engine import TransformersEngine
from llm_mer.scoring.prefix_cache import PrefixCache
from llm_mer.scoring.prompt_layout import TaskPrompts
from llm_mer.scoring.temperature import scale_by_temperature

logger = logging.getLogger(__name__)

SCORE_STATISTICS: tuple[str, ...] = ("median", "mean", "mode")


@dataclass(frozen=True)
class Batch:
    """Questions of a dataset, by index, that are answered together: the same tasks about utterances of one language.

    All questions about an utterance stand next to one another, in the order of ``tasks``.
    """

    questions: tuple[int, ...]
    tasks: tuple[Task, ...]
    language: str
    windows: tuple[ClipWindow | None, ...] = ()
    """The part of each utterance that is read, None for the whole; empty where all are read whole."""


@dataclass(frozen=True)
class _Answers:
    """One task's answers about a batch: ``(B, C)`` log-probabilities (None for a head's score) and ``(B,)`` outside mass."""

    fusion: FusionOutput
    log_probabilities: np.ndarray | None
    outside_mass: np.ndarray | None = None
    read_out: np.ndarray | None = None
    """``(B, C)`` logits, or ``(B, 1)`` numbers, of the task's read-out."""
    head: np.ndarray | None = None
    """``(B, C)`` log-probabilities of the adapter's own head, beside a language model."""


@dataclass
class Predictor:
    """Answers the questions of a dataset.

    Args:
        model: bare or PEFT-wrapped; used in eval mode. processor: the one it was trained with.
        batch_size: utterances per forward, whatever is asked about them.
        score_statistic: which point of a score's distribution is its value: median, mean or mode.
        generate: also generate freely; the text is kept and parsed, never mapped to a class when it cannot be.
        warns_of_distance: log the first utterance of each modality that is far from the training data.
        answer_end: score the token that ends an answer too. Without it a label is as probable as its own tokens, whatever
            would follow them, and the vocabulary is read once a question in place of once a label.
        answer: ``scored`` answers; in their place the ``read_out`` (:class:`~llm_mer.model.read_out.ReadOut`); or all that a
            checkpoint says, ``pooled`` (:mod:`llm_mer.scoring.pooling`).
        keep_features: keep each sample's fused vector in ``diagnostics["features"]``.
        engine: what runs the language model; the model itself when None.
        temperatures: ``{(task, language): T}``, of the distributions over answers; none where a question is not named.
        pool_weights: what the distributions that are pooled weigh.
        windows: in which windows long clips are asked about; None asks about each as a whole.
    """

    model: nn.Module
    processor: MerProcessor
    batch_size: int = 32
    score_statistic: str = "median"
    generate: bool = False
    answer_end: bool = True
    warns_of_distance: bool = True
    answer: str = SCORED
    keep_features: bool = False
    engine: Engine | None = None
    temperatures: Mapping[tuple[str, str], float] = field(default_factory=dict)
    pool_weights: PoolWeights = field(default_factory=dict)
    windows: ClipWindows | None = None
    _trees: dict[tuple[str, str], AnswerTree] = field(default_factory=dict, repr=False)
    _warnings: InputWarnings = field(default_factory=InputWarnings, repr=False)
    _kept: dict[tuple[str, ...], PrefixCache] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.score_statistic not in SCORE_STATISTICS:
            raise UserError(f"score_statistic is {self.score_statistic!r}; choose one of {', '.join(SCORE_STATISTICS)}")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.processor.tokenizer is None and (self.generate or not self.answer_end):
            name = "generate" if self.generate else "answer_end: false"
            raise UserError(f"{name}: the checkpoint is an adapter alone, without a language model; leave it out")
        self.core = conditional_generation_of(self.model)
        self.adapter = fusion_adapter_of(self.model)
        if self.answer not in ANSWERS:
            raise UserError(f"answer is {self.answer!r}; choose one of {', '.join(ANSWERS)}")
        if self.answer == READ_OUT and not getattr(self.core.config, "read_out", None):
            raise UserError("answer: read_out, but the checkpoint has no read-out; train with read_out: true")
        if self.answer == POOLED and not self.pool_weights:
            raise UserError(
                "answer: pooled, but there are no weights to pool by; `llm-mer calibrate` fits them on validation data, for "
                "a language model with auxiliary_head: true or read_out: true"
            )
        self.limits = StepLimits.of(self.processor, self.adapter, None)
        self.device = next(self.core.parameters()).device
        core: Any = self.core  # an adapter alone is never asked
        self.answering: Engine = TransformersEngine(core) if self.engine is None else self.engine
        if (note := self.rounded_logits()) is not None:
            logger.warning(note)

    def batches(self, dataset: MerDataset, questions: Sequence[int] | None = None) -> list[Batch]:
        """The questions (default: all of the dataset) in batches of one language and the same tasks, sorted by length."""
        indices = range(len(dataset)) if questions is None else questions
        by_row: dict[int, list[int]] = {}
        for index in indices:
            by_row.setdefault(dataset.questions[index].row, []).append(index)
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for row, found in by_row.items():
            names = tuple(dataset.questions[index].task.name for index in found)
            groups.setdefault((dataset.language(row), names), []).append(row)
        batches = []
        for (language, _), rows in groups.items():
            rows.sort(key=dataset.text_length)
            tasks = tuple(dataset.questions[index].task for index in by_row[rows[0]])
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                batches.append(Batch(tuple(index for row in part for index in by_row[row]), tasks, language))
        return batches

    def predict(
        self, dataset: MerDataset, questions: Sequence[int] | None = None, progress: str | None = None
    ) -> list[Prediction]:
        """Predictions in the order of ``questions`` (default: every question of the dataset)."""
        indices = list(range(len(dataset))) if questions is None else list(questions)
        found: dict[int, Prediction] = {}
        quiet, batches = progress is None, self.batches(dataset, indices)
        with (
            self.evaluating(len(batches) > 1 or self.windows is not None),
            track_progress(total=len(indices), description=progress or "", unit="answer", hidden=quiet, keep=False) as bar,
        ):
            for batch in batches:
                found.update(zip(batch.questions, self.predict_batch(dataset, batch), strict=True))
                bar.update(len(batch.questions))
        return [found[index] for index in indices]

    @contextmanager
    def evaluating(self, several: bool = True) -> Iterator[None]:
        """The model in evaluation mode, and as it was afterwards; its weights must stay meanwhile.

        With ``several`` batches of the same tasks and language, what their prompts begin with is computed once for all.
        """
        was_training, kept = self.model.training, self._kept
        self.model.eval()
        if kept is None and several:
            self._kept = {}
        try:
            yield
        finally:
            self._kept = kept
            self.model.train(was_training)

    def predict_batch(self, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        """Predictions of one batch, in its order; of a clip that is longer than a window, those of its windows pooled.

        Where memory is exhausted it is answered in halves, and that is said.

        Raises:
            UserError: memory is exhausted by one utterance alone.
        """
        if self.windows is not None and not batch.windows:
            return self._predict_windows(self.windows, dataset, batch)
        return self._predict_or_halve(dataset, batch)

    def _predict_windows(self, windows: ClipWindows, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        """The windows of all utterances of a batch in batches of their own, pooled by utterance and task."""
        asked = len(batch.tasks)
        per_utterance = [batch.questions[place : place + asked] for place in range(0, len(batch.questions), asked)]
        parts = [windows.windows_of(dataset.utterance(dataset.questions[own[0]].row)) for own in per_utterance]
        expanded = [
            (own, window if len(found) > 1 else None)
            for own, found in zip(per_utterance, parts, strict=True)
            for window in found
        ]
        answers: list[Prediction] = []
        for start in range(0, len(expanded), self.batch_size):
            chunk = expanded[start : start + self.batch_size]
            questions = tuple(question for own, _ in chunk for question in own)
            part = dataclasses.replace(batch, questions=questions, windows=tuple(window for _, window in chunk))
            answers += self._predict_or_halve(dataset, part)
        pooled, begin = [], 0
        for found in parts:
            own_answers = answers[begin : begin + len(found) * asked]
            begin += len(own_answers)
            for number, task in enumerate(batch.tasks):
                of_task = own_answers[number::asked]
                pooled.append(of_task[0] if len(found) == 1 else pool_windows(of_task, found, task, self.score_statistic))
        return pooled

    def _predict_or_halve(self, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        try:
            return self._predict_whole(dataset, batch)
        except (MemoryError, RuntimeError) as error:
            # Where parameters are sharded every process takes part in each forward, and the others would wait.
            if not is_out_of_memory(error) or is_sharded(self.core):
                raise
            reason = first_line(error)[:120]
        # Past the handler, which would keep alive what the failed forward holds.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        count = len(batch.questions) // len(batch.tasks)
        if count == 1:
            name = dataset.utterance(dataset.questions[batch.questions[0]].row).id
            raise UserError(f"utterance {name!r} alone exhausts the memory ({reason}); shorten it, or use a larger machine")
        logger.warning("memory is exhausted by %d utterances at once; they are answered in halves", count)
        middle = count // 2
        cut = middle * len(batch.tasks)
        halves = (
            dataclasses.replace(batch, questions=batch.questions[:cut], windows=batch.windows[:middle]),
            dataclasses.replace(batch, questions=batch.questions[cut:], windows=batch.windows[middle:]),
        )
        return [prediction for half in halves for prediction in self._predict_or_halve(dataset, half)]

    @torch.no_grad()
    def _predict_whole(self, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        if self.processor.speaker_effects and dataset.speakers_known is None:
            dataset.know_speakers(self.processor.speaker_effects)
        if self.adapter.uses_context and dataset.context is None:
            attach_context(dataset, self.model, self.processor, vector_sizes(self.adapter.config))
        collator = MerCollator(dataset, self.processor, self.adapter.uses_context)
        questions, tasks = [dataset.questions[i] for i in batch.questions], batch.tasks
        began = time.perf_counter()
        rows = [question.row for question in questions[:: len(tasks)]]
        read = collator.utterances(rows, tasks, self._cutters(batch))
        inputs: dict[str, Any] = dict(read.inputs.to(self.device).model_inputs())
        unread = [unread_parts(self.processor, utterance, tasks) for utterance in read.utterances]
        self._warnings.unread(unread)
        cuts = [self._cut(utterance, cut) for utterance, cut in zip(read.utterances, read.cut, strict=True)]
        self._warnings.cut(cuts)
        self._warnings.flags(read.utterances)
        if self.warns_of_distance:
            self._warnings.distance([u.id for u in read.utterances], read.training_distances)
        answers = self._score(read, inputs, batch)
        fusion = answers[0].fusion
        inputs = {name: value for name, value in inputs.items() if name not in FUSION_KEYS}
        inputs["fusion"] = fusion
        heads = [self._head_values(task, fusion) for task in tasks]
        generated: list[list[str]] | None = None
        if self.generate and self.processor.tokenizer is not None:
            generated = [self._generate(prompts, inputs) for prompts in read.prompts]
        diagnostics = {name: value.double().cpu().numpy() for name, value in fusion.diagnostics.items()}
        if self.keep_features and fusion.features is not None:
            diagnostics["features"] = fusion.features.double().cpu().numpy()
        seconds = (time.perf_counter() - began) / len(questions)
        predictions, precision = [], self.precision
        for place, question in enumerate(questions):
            row, number = divmod(place, len(tasks))
            task, utterance, scored = tasks[number], read.utterances[row], answers[number]
            prediction = Prediction(
                id=utterance.id,
                task=task.name,
                language=batch.language,
                value="",
                truth=question.truth,
                diagnostics={name: np.round(value[row], 5).tolist() for name, value in diagnostics.items()},
                tags=utterance.tags,
                dialogue_id=utterance.dialogue_id,
                turn=utterance.turn,
                speaker=utterance.speaker,
                cut=cuts[row],
                unread=unread[row],
                training_distance=read.training_distances[row],
                flags=list(utterance.flags),
                seconds=round(seconds, 6),
            )
            prediction.precision = precision
            if dataset.speakers_known is not None:
                prediction.speaker_utterances = dataset.speakers_known.count(utterance.speaker)
            if question.votes is not None:
                prediction.votes = question.votes.by_name(task)
                prediction.annotators = None if question.votes.exclusive else question.votes.annotators
            if scored.outside_mass is not None:
                prediction.outside_mass = float(scored.outside_mass[row])
            log_probs = None if scored.log_probabilities is None else scored.log_probabilities[row]
            temperature = self.temperatures.get((task.name, batch.language))
            if temperature is not None and log_probs is not None:
                log_probs, prediction.temperature = scale_by_temperature(log_probs, temperature), temperature
            self._fill_value(prediction, task, log_probs, heads[number], row)
            if scored.head is not None:
                prediction.head_log_probabilities = [float(v) for v in scored.head[row]]
            if scored.read_out is not None:
                fill_read_out(prediction, task, scored.read_out[row])
            if self.answer == READ_OUT:
                prediction = prediction.from_read_out()
            elif self.answer == POOLED:
                prediction = pooled_answer(prediction, task, self.pool_weights, self.score_statistic)
            if generated is not None:
                self._fill_generated(prediction, task, generated[number][row])
            predictions.append(prediction)
        return predictions

    def _cut(self, utterance: Utterance, prepared: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """What of an utterance the adapter does not read; ``prepared``: what was cut before it.

        An adapter that reads vectors of whole utterances loses no step of theirs.
        """
        steps = self.limits.excess(self.limits.lengths(utterance))
        reads_words = self.adapter.step_limit != 0 or self.processor.text_source == "backbone"
        return steps | ({"text": prepared["text"]} if "text" in prepared and reads_words else {})

    def _cutters(self, batch: Batch) -> list[Callable[[Utterance], Utterance] | None] | None:
        """What takes a window out of each utterance of a batch; None where all are read whole."""
        windows = self.windows
        if windows is None or not any(batch.windows):
            return None
        return [None if window is None else partial(windows.cut_out, window=window) for window in batch.windows]

    @property
    def precision(self) -> str | None:
        """``float32``, ``bfloat16`` …: what the language model computes with, autocast included; None without one."""
        if not isinstance(self.core, MerForConditionalGeneration):
            return None
        device = self.device.type
        # A quantised model keeps its embeddings, and computes in their type.
        dtype = self.core.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return str(dtype).removeprefix("torch.")

    def rounded_logits(self) -> str | None:
        """What to say where logits are rounded to half precision before they are normalised; None where they are not."""
        if self.precision in (None, "float32", "float64") or reads_in_float32(self.core.lm_head):
            return None
        return (
            "the output head cannot be computed in float32 here (it is sharded, quantised or another engine's), so logits "
            f"are rounded to {self.precision} and probabilities may be several per cent off"
        )

    def _score(self, read: UtteranceBatch, inputs: dict[str, Any], batch: Batch) -> list[_Answers]:
        """The answers to each task, on the CPU: the language model's, or those of an adapter's own head."""
        if isinstance(self.core, MerForConditionalGeneration):
            task_prompts = [
                TaskPrompts(prompts, self.answer_tree(task, batch.language))
                for task, prompts in zip(batch.tasks, read.prompts, strict=True)
            ]
            kept = None
            if self._kept is not None:
                key = (batch.language, *(task.name for task in batch.tasks))
                kept = self._kept.setdefault(key, PrefixCache())
            found = []
            fusion: FusionOutput | None = None
            for task, scores in zip(batch.tasks, self.answering.score(task_prompts, inputs, kept), strict=True):
                fusion = scores.fusion if scores.fusion is not None else fusion
                if fusion is None:  # prompts without pseudo tokens: the language model needs no adapter
                    fusion = self.core.model.fuse({name: inputs[name] for name in FUSION_KEYS if name in inputs})
                read_out = None
                if scores.read_out is not None:
                    columns = columns_of(self.core.config.read_out or {}, task.name)
                    read_out = scores.read_out[:, columns].double().cpu().numpy()
                elif self.answer == READ_OUT:
                    raise UserError("answer: read_out needs the hidden state, which engine transformers alone gives")
                log_probs, outside = (t.float().cpu().numpy() for t in (scores.log_probabilities, scores.outside_mass))
                head = self._head_log_probabilities(task, fusion) if self._head_knows(task, fusion) else None
                found.append(_Answers(fusion, log_probs, outside, read_out, head))
            return found
        fusion = self.core(**inputs).fusion
        return [_Answers(fusion, self._head_log_probabilities(task, fusion)) for task in batch.tasks]

    def answer_tree(self, task: Task, language: str) -> AnswerTree:
        """Every admissible answer of a task in a language.

        Raises:
            UserError: without ends, where the tokens of one answer begin another's.
        """
        key = (task.name, language)
        if key not in self._trees:
            answers = self.processor.answers(task, language)
            if not self.answer_end and has_prefix_conflict(answers):
                raise UserError(
                    f"answer_end: an answer to task {task.name!r} in language {language!r} begins with another's tokens, "
                    "and only its end tells them apart; leave answer_end true"
                )
            self._trees[key] = AnswerTree.build(answers, self.processor.end_token_id if self.answer_end else None)
        return self._trees[key]

    def _fill_generated(self, prediction: Prediction, task: Task, text: str) -> None:
        """The text of a free generation, and its value where it has one."""
        prediction.generated = text
        parsed = task.parse(text, prediction.language, self.processor.answer_style(task, prediction.language))
        if parsed is not None and task.kind == "classification":
            prediction.parsed = task.label_names[int(parsed)]
        else:
            prediction.parsed = parsed

    def _fill_value(
        self, prediction: Prediction, task: Task, log_probs: np.ndarray | None, head_values: Any, row: int
    ) -> None:
        if head_values is not None:
            prediction.head_value = head_values[row]
        if log_probs is not None:
            fill_distribution(prediction, task, log_probs, self.score_statistic)
        else:  # an adapter alone gives a score, not a distribution
            prediction.value = float(head_values[row])

    def _head_knows(self, task: Task, fusion: FusionOutput) -> bool:
        """Whether the adapter's own head was trained on a task."""
        if task.kind == "classification":
            known, outputs = self.processor.class_task, fusion.logits
        else:
            known, outputs = self.processor.score_task, fusion.scores
        return outputs is not None and known is not None and known.name == task.name

    def _head_log_probabilities(self, task: Task, fusion: FusionOutput) -> np.ndarray | None:
        """``(B, C)`` of the head's labels; None for a score, of which it gives a number alone."""
        if not self._head_knows(task, fusion):
            raise UserError(f"this adapter's head was not trained on task {task.name!r}")
        if task.kind == "regression":
            return None
        assert fusion.logits is not None
        return torch.log_softmax(fusion.logits.float(), dim=-1).cpu().numpy()

    def _head_values(self, task: Task, fusion: FusionOutput) -> list[str | float] | None:
        """The head's own predictions for a task it knows: label names, or scores clipped to the range."""
        if not self._head_knows(task, fusion):
            return None
        if task.kind == "classification":
            assert fusion.logits is not None
            return [task.label_names[i] for i in fusion.logits.argmax(dim=-1).tolist()]
        assert fusion.scores is not None
        low, high = task.require_range()
        return [float(v) for v in fusion.scores.float().clamp(low, high).tolist()]

    def _generate(self, prompts: Sequence[PromptIds], inputs: dict[str, Any]) -> list[str]:
        """Greedy free generation."""
        processor = self.processor
        assert processor.tokenizer is not None
        ids = self.answering.generate(prompts, inputs, processor.end_token_id, processor.filler_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
