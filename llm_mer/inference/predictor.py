"""Batched answers to the questions of a data set: always valid, with their probabilities."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from llm_mer.adapters.base import FusionOutput
from llm_mer.adapters.context_window import vector_sizes
from llm_mer.data.dataset import MerDataset
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction
from llm_mer.model.collator import MerCollator
from llm_mer.model.context_vectors import attach_context
from llm_mer.model.modeling_mer import MerForConditionalGeneration, conditional_generation_of, fusion_adapter_of
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.answer_scorer import PrefixCache
from llm_mer.scoring.answer_tree import has_prefix_conflict
from llm_mer.scoring.engines.base import MAX_ANSWER_TOKENS, AnswerScorer, Engine
from llm_mer.scoring.engines.transformers_engine import TransformersEngine
from llm_mer.scoring.score_distribution import ScoreDistribution

SCORE_STATISTICS: tuple[str, ...] = ("median", "mean", "mode")


@contextmanager
def recorded_fusion(adapter: nn.Module) -> Iterator[list[FusionOutput]]:
    """Collect what the adapter says while a scorer runs the model around it."""
    outputs: list[FusionOutput] = []
    handle = adapter.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@dataclass(frozen=True)
class Batch:
    """Questions of a dataset, by index, that are answered in one forward: one task, one language."""

    questions: tuple[int, ...]
    language: str


@dataclass
class Predictor:
    """Answers the questions of a dataset.

    Args:
        model: bare or PEFT-wrapped; used in eval mode. processor: the one it was trained with.
        batch_size: questions per forward. use_context: build conversation windows.
        score_statistic: which point of a score's distribution is its value: median, mean or mode.
        generate: also generate freely; the text is kept and parsed, never mapped to a class when it cannot be.
        answer_end: score the token that ends an answer too. Without it a label is as probable as its own tokens, whatever
            would follow them, and the vocabulary is read once a question in place of once a label.
        keep_features: keep each sample's fused vector in ``diagnostics["features"]``.
        engine: what runs the language model; the model itself when None.
    """

    model: nn.Module
    processor: MerProcessor
    batch_size: int = 32
    use_context: bool = False
    score_statistic: str = "median"
    generate: bool = False
    answer_end: bool = True
    keep_features: bool = False
    engine: Engine | None = None
    _scorers: dict[tuple[str, str], AnswerScorer] = field(default_factory=dict, repr=False)
    _kept: dict[tuple[str, str], PrefixCache] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.score_statistic not in SCORE_STATISTICS:
            raise UserError(f"score_statistic is {self.score_statistic!r}; choose one of {', '.join(SCORE_STATISTICS)}")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        self.core = conditional_generation_of(self.model)
        self.adapter = fusion_adapter_of(self.model)
        self.device = next(self.core.parameters()).device
        self.answering = TransformersEngine(self.core) if self.engine is None else self.engine

    def batches(self, dataset: MerDataset, questions: Sequence[int] | None = None) -> list[Batch]:
        """The questions (default: all of the dataset) in batches of one task and language, sorted by length.

        Questions of one task and language share their answers, so they are scored together.
        """
        indices = range(len(dataset)) if questions is None else questions
        groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for index in indices:
            question = dataset.questions[index]
            utterance = dataset.utterance(question.row)
            groups.setdefault((question.task.name, utterance.language), []).append((len(utterance.text or ""), index))
        found = []
        for (_, language), members in groups.items():
            members.sort(key=lambda member: member[0])
            ordered = [index for _, index in members]
            for start in range(0, len(ordered), self.batch_size):
                found.append(Batch(tuple(ordered[start : start + self.batch_size]), language))
        return found

    def predict(
        self, dataset: MerDataset, questions: Sequence[int] | None = None, progress: str | None = None
    ) -> list[Prediction]:
        """Predictions in the order of ``questions`` (default: every question of the dataset)."""
        indices = list(range(len(dataset))) if questions is None else list(questions)
        found: dict[int, Prediction] = {}
        quiet, batches = progress is None, self.batches(dataset, indices)
        with (
            self.evaluating(len(batches) > 1),
            tqdm(total=len(indices), desc=progress, unit="utterance", disable=quiet, leave=False) as bar,
        ):
            for batch in batches:
                found.update(zip(batch.questions, self.predict_batch(dataset, batch), strict=True))
                bar.update(len(batch.questions))
        return [found[index] for index in indices]

    @contextmanager
    def evaluating(self, several: bool = True) -> Iterator[None]:
        """The model in evaluation mode, and as it was afterwards; its weights must stay meanwhile.

        With ``several`` batches of a task and language, what their prompts begin with is computed once for all.
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

    @torch.no_grad()
    def predict_batch(self, dataset: MerDataset, batch: Batch) -> list[Prediction]:
        """Predictions of one batch, in its order."""
        if self.use_context and dataset.context is None:
            attach_context(dataset, self.model, self.processor, vector_sizes(self.adapter.config))
        collator = MerCollator(dataset, self.processor, self.use_context)
        questions, language = [dataset.questions[i] for i in batch.questions], batch.language
        utterances = [dataset.utterances[question.row] for question in questions]
        began = time.perf_counter()
        task = questions[0].task
        inputs = collator.batch(questions, with_answer=False).to(self.device).model_inputs()
        log_probs: np.ndarray | None
        with recorded_fusion(self.adapter) as fusions:
            if isinstance(self.core, MerForConditionalGeneration):
                kept = None if self._kept is None else self._kept.setdefault((task.name, language), PrefixCache())
                log_probs = self.scorer(task, language).log_probabilities(inputs, kept).float().cpu().numpy()
            else:
                self.core(**inputs)
                log_probs = self._head_log_probabilities(task, fusions[0])
        fusion = fusions[0]
        generated = self._generate(inputs) if self.generate and self.processor.tokenizer is not None else None
        head_values = self._head_values(task, fusion)
        seconds = (time.perf_counter() - began) / len(questions)
        diagnostics = {name: value.double().cpu().numpy() for name, value in fusion.diagnostics.items()}
        if self.keep_features and fusion.features is not None:
            diagnostics["features"] = fusion.features.double().cpu().numpy()
        predictions = []
        for i, (question, utterance) in enumerate(zip(questions, utterances, strict=True)):
            prediction = Prediction(
                id=utterance.id,
                task=task.name,
                language=language,
                value="",
                truth=question.truth,
                diagnostics={name: np.round(value[i], 5).tolist() for name, value in diagnostics.items()},
                tags=utterance.tags,
                dialogue_id=utterance.dialogue_id,
                turn=utterance.turn,
                speaker=utterance.speaker,
                seconds=round(seconds, 6),
            )
            self._fill_value(prediction, task, None if log_probs is None else log_probs[i], head_values, i)
            if generated is not None:
                prediction.generated = generated[i]
                parsed = task.parse(generated[i], language, self.processor.answer_style(task, language))
                if parsed is not None and task.kind == "classification":
                    prediction.parsed = task.label_names[int(parsed)]
                else:
                    prediction.parsed = parsed
            predictions.append(prediction)
        return predictions

    def scorer(self, task: Task, language: str) -> AnswerScorer:
        """The scorer over every admissible answer of a task in a language.

        Raises:
            UserError: without ends, where the tokens of one answer begin another's.
        """
        key = (task.name, language)
        if key not in self._scorers:
            answers = self.processor.answers(task, language)
            if not self.answer_end and has_prefix_conflict(answers):
                raise UserError(
                    f"answer_end: an answer to task {task.name!r} in language {language!r} begins with another's tokens, "
                    "and only its end tells them apart; leave answer_end true"
                )
            end = self.processor.end_token_id if self.answer_end else None
            self._scorers[key] = self.answering.scorer(answers, end)
        return self._scorers[key]

    def _fill_value(
        self, prediction: Prediction, task: Task, log_probs: np.ndarray | None, head_values: Any, row: int
    ) -> None:
        if head_values is not None:
            prediction.head_value = head_values[row]
        if task.kind == "classification":
            assert log_probs is not None
            names = task.label_names
            prediction.value = names[int(log_probs.argmax())]
            prediction.log_probabilities = [float(v) for v in log_probs]
            prediction.probabilities = dict(zip(names, np.exp(log_probs.astype(np.float64)).round(6).tolist(), strict=True))
            return
        if log_probs is None:  # an adapter alone gives a score, not a distribution
            prediction.value = float(head_values[row])
            return
        grid = np.asarray(task.grid())
        scores = ScoreDistribution(grid, np.exp(log_probs)[None])
        low, high = scores.interval(0.8)[0]
        prediction.mean, prediction.median = float(scores.mean[0]), float(scores.median[0])
        prediction.mode, prediction.interval = float(scores.mode[0]), (float(low), float(high))
        prediction.value = {"median": prediction.median, "mean": prediction.mean, "mode": prediction.mode}[
            self.score_statistic
        ]
        prediction.log_probabilities = [float(v) for v in log_probs]
        texts = [task.format_score(v) for v in task.grid()]
        prediction.probabilities = dict(zip(texts, np.exp(log_probs.astype(np.float64)).round(6).tolist(), strict=True))

    def _head_log_probabilities(self, task: Task, fusion: FusionOutput) -> np.ndarray | None:
        if task.kind == "classification":
            if fusion.logits is None or self.processor.class_task is None or self.processor.class_task.name != task.name:
                raise UserError(f"this adapter's head was not trained on task {task.name!r}")
            return torch.log_softmax(fusion.logits.float(), dim=-1).cpu().numpy()
        if fusion.scores is None or self.processor.score_task is None or self.processor.score_task.name != task.name:
            raise UserError(f"this adapter's head was not trained on task {task.name!r}")
        return None

    def _head_values(self, task: Task, fusion: FusionOutput) -> list[str | float] | None:
        """The head's own predictions for a task it knows: label names, or scores clipped to the range."""
        if task.kind == "classification":
            known = self.processor.class_task
            if fusion.logits is None or known is None or known.name != task.name:
                return None
            return [task.label_names[i] for i in fusion.logits.argmax(dim=-1).tolist()]
        known = self.processor.score_task
        if fusion.scores is None or known is None or known.name != task.name:
            return None
        low, high = task.require_range()
        return [float(v) for v in fusion.scores.float().clamp(low, high).tolist()]

    def _generate(self, inputs: dict[str, Tensor]) -> list[str]:
        """Greedy free generation."""
        processor = self.processor
        assert processor.tokenizer is not None
        ids = self.answering.generate(inputs, processor.end_token_id, processor.filler_id, MAX_ANSWER_TOKENS)
        return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
