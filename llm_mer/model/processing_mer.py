"""From questions to token ids and feature arrays: the processor, saved beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm_mer.data.long_clips import MAX_STEPS, REFUSE
from llm_mer.data.missing_values import check_sequence
from llm_mer.data.normalisation import GLOBAL, NONE, UTTERANCE
from llm_mer.data.schema import Utterance
from llm_mer.data.speaker_effects import SpeakerEffects
from llm_mer.data.statistics import FeatureStatistics, normalise_by_own_steps
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.data.training_range import TrainingRange
from llm_mer.errors import UserError
from llm_mer.prompting.answer_start import (
    ANSWER_STARTS,
    BARE,
    JOINED,
    AnswerStart,
    template_answer_start,
)
from llm_mer.prompting.rendering import AnsweredPrompt, HistoryTurn, RenderedPrompt, render, render_chat, render_plain
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.templates import PromptTemplate, select_prompt
from llm_mer.prompting.verbatim import Piece, VerbatimEncoder


@dataclass
class PromptIds:
    """A tokenised prompt: ids with a filler at the ``count`` pseudo-token positions that begin at ``start``."""

    ids: list[int]
    start: int
    count: int


@dataclass
class PreparedUtterance:
    """What the adapter reads of an utterance, whatever is asked about it.

    Attributes:
        text_ids: transcript tokens the adapter reads, None when text comes as features or is missing.
        features: ``{modality: (T_m, D_m)}`` normalised; a missing modality is absent.
        cut: ``{modality: (read, given)}`` of what is longer than the adapter reads: steps, or tokens of a transcript.
    """

    text_ids: list[int] | None
    features: dict[str, np.ndarray]
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass
class PreparedSample:
    """One question ready to be padded into a batch.

    Attributes:
        prompt: None for an adapter alone. answer: token ids of the true answer with the end token, empty when unknown.
        text_ids: transcript tokens the adapter reads, None when text comes as features or is missing.
        features: ``{modality: (T_m, D_m)}`` normalised; a missing modality is absent.
        class_target: index in the first classification task, or -100. score_target: or NaN.
    """

    prompt: PromptIds | None
    answer: list[int]
    text_ids: list[int] | None
    features: dict[str, np.ndarray]
    class_target: int
    score_target: float


@dataclass
class MerProcessor:
    """Everything between an utterance and the model's inputs.

    Attributes:
        tokenizer: the backbone's; None for an adapter alone.
        feature_sizes: ``{modality: D_m}`` the model was built for; another size is refused.
        statistics: of the training split, applied to every feature sequence whose ``normalisation`` is by them.
        normalisation: ``{modality: kind}`` where it is not global (:mod:`llm_mer.data.normalisation`).
        speaker_effects: of the modalities that are normalised by speaker, which a dataset does as it is read.
        long_clips: what became of longer clips in training (:mod:`llm_mer.data.long_clips`).
        training_ranges: where the training utterances of each modality lie; none in checkpoints older than this.
        answer_start: ``joined`` or ``bare``, see :mod:`llm_mer.prompting.answer_start`; checkpoints that do not say are
            ``bare``.
        examples: answered prompts that stand before each prompt, by task and language; a trained model is asked without.
        answer_end_id: the token that ends an answer where examples end theirs otherwise than by the end of the sequence.
        filler_id: token id at pseudo-token positions; its embedding is never read.
    """

    tokenizer: PreTrainedTokenizerBase | None
    tasks: list[Task]
    prompts: list[PromptTemplate]
    feature_sizes: dict[str, int]
    statistics: dict[str, FeatureStatistics]
    num_pseudo_tokens: int
    text_source: str = "backbone"
    chat: str = "auto"
    max_text_tokens: int = 128
    max_audio_steps: int = MAX_STEPS["audio"]
    max_vision_steps: int = MAX_STEPS["vision"]
    max_prompt_tokens: int = 1024
    long_clips: str = REFUSE
    answer_start: str = JOINED
    normalisation: dict[str, str] = field(default_factory=dict)
    speaker_effects: dict[str, SpeakerEffects] = field(default_factory=dict)
    training_ranges: dict[str, TrainingRange] = field(default_factory=dict)
    examples: dict[tuple[str, str], tuple[AnsweredPrompt, ...]] = field(init=False, default_factory=dict)
    answer_end_id: int | None = field(init=False, default=None)
    filler_id: int = field(init=False, default=0)
    _encoder: VerbatimEncoder | None = field(init=False, default=None, repr=False)
    _answer_starts: dict[tuple[str, PromptTemplate], AnswerStart] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.answer_start not in ANSWER_STARTS:
            raise UserError(f"answer_start is {self.answer_start!r}; it must be {' or '.join(ANSWER_STARTS)}")
        if self.tokenizer is not None:
            if self.tokenizer.pad_token_id is None:
                raise UserError("the tokenizer has no pad token; load it with llm_mer.backbones.loading.load_backbone")
            self.filler_id = int(self.tokenizer.pad_token_id)
        self.class_task = next((task for task in self.tasks if task.kind == "classification"), None)
        self.score_task = next((task for task in self.tasks if task.kind == "regression"), None)

    # --- text -----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a template's or an answer's text, without special tokens of the tokenizer's own."""
        return self._encode([Piece(text)])

    def encode_words(self, text: str) -> list[int]:
        """Token ids of a user's text, in which special tokens are words (:mod:`llm_mer.prompting.verbatim`)."""
        return self._encode([Piece(text, quoted=True)])

    def _encode(self, pieces: Sequence[Piece]) -> list[int]:
        assert self.tokenizer is not None
        if self._encoder is None:
            self._encoder = VerbatimEncoder(self.tokenizer)
        return self._encoder.encode(pieces)

    def prefix_ids(self) -> list[int]:
        """Special tokens the tokenizer opens a plain prompt with (``<s>``, or GLM's ``[gMASK] sop``)."""
        assert self.tokenizer is not None
        ids = list(self.tokenizer("", add_special_tokens=True)["input_ids"])
        return [i for i in ids if i != self.tokenizer.eos_token_id]

    @property
    def uses_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return self.chat == "auto" and self.tokenizer is not None and bool(self.tokenizer.chat_template)

    def render(
        self,
        template: PromptTemplate,
        task: Task,
        text: str | None,
        history: Sequence[HistoryTurn],
        speaker: str | None = None,
    ) -> RenderedPrompt:
        """The prompt's text before and after the pseudo tokens: chat markup included, or the system message in front."""
        rendered = render(template, task, text, history, speaker)
        examples = self.examples.get((task.name, template.language), ())
        if self.uses_chat:
            assert self.tokenizer is not None
            return render_chat(rendered, self.tokenizer, examples=examples)
        start = self.find_answer_start(task, template.language) if examples else AnswerStart()
        return render_plain(rendered, examples, start.prompt_end + start.answer_prefix)

    def encode_prompt(
        self,
        task: Task,
        language: str,
        text: str | None,
        history: Sequence[HistoryTurn],
        where: str = "",
        speaker: str | None = None,
        any_length: bool = False,
    ) -> PromptIds:
        """``[E_prefix; T_pseudo; E_suffix; P_task]`` as ids; loses the earliest turns to fit ``max_prompt_tokens``.

        Raises:
            UserError: it does not fit without any, unless ``any_length`` is asked for.
        """
        template = select_prompt(self.prompts, task, language)
        turns = list(history)[-template.context_turns :] if template.context_turns else []
        end = Piece(self.find_answer_start(task, language).prompt_end)
        while True:
            rendered = self.render(template, task, text, turns, speaker)
            before = self._encode(rendered.before_pieces)
            head = before if self.uses_chat else self.prefix_ids() + before
            ids = head + [self.filler_id] * self.num_pseudo_tokens + self._encode((*rendered.after_pieces, end))
            if len(ids) <= self.max_prompt_tokens or any_length:
                return PromptIds(ids, len(head), self.num_pseudo_tokens)
            if not turns:
                raise UserError(
                    f"{where + ': ' if where else ''}the prompt has {len(ids)} tokens, max_prompt_tokens is "
                    f"{self.max_prompt_tokens}; shorten the text or raise max_prompt_tokens"
                )
            turns = turns[1:]

    def context_turns(self, task: Task, language: str) -> int:
        """Earlier turns the prompt of this task and language shows."""
        return select_prompt(self.prompts, task, language).context_turns if self.tokenizer is not None else 0

    @property
    def most_context_turns(self) -> int:
        """The largest number of earlier turns any of the prompts shows."""
        return max((prompt.context_turns for prompt in self.prompts), default=0)

    def answer_style(self, task: Task, language: str) -> str:
        """``word``, ``index`` or ``number``, as the prompt of this task and language asks."""
        return select_prompt(self.prompts, task, language).answer

    def find_answer_start(self, task: Task, language: str) -> AnswerStart:
        """How the answers to a task begin after its prompts in a language, whatever the utterance.

        Raises:
            UserError: a chat template whose prompts do not end where answers begin.
        """
        if self.answer_start == BARE:
            return AnswerStart()
        template = select_prompt(self.prompts, task, language)
        key = (task.name, template)
        if key not in self._answer_starts:
            assert self.tokenizer is not None
            self._answer_starts[key] = template_answer_start(template, task, self.tokenizer, self.uses_chat)
        return self._answer_starts[key]

    def check_answer_starts(self) -> None:
        """Find the answer start of every task and language. Raises :class:`UserError`, see :meth:`find_answer_start`."""
        if self.tokenizer is None:
            return
        for task in self.tasks:
            for language in dict.fromkeys(prompt.language for prompt in self.prompts if prompt.kind == task.kind):
                if any(prompt.language == language and prompt.can_ask(task) for prompt in self.prompts):
                    self.find_answer_start(task, language)

    def encode_answer(self, text: str, task: Task, language: str) -> list[int]:
        """Token ids of an answer to a task as they follow its prompt, without the end token."""
        return self.encode(self.find_answer_start(task, language).answer_prefix + text)

    def answers(self, task: Task, language: str) -> list[list[int]]:
        """Token ids of every admissible answer, in label or grid order, without the end token.

        Raises:
            UserError: two answers become the same tokens, so no score could tell them apart, or one holds the end token.
        """
        texts = task.answers(language, self.answer_style(task, language))
        ids = [self.encode_answer(text, task, language) for text in texts]
        seen: dict[tuple[int, ...], str] = {}
        for text, tokens in zip(texts, ids, strict=True):
            if self.end_token_id in tokens:
                raise UserError(f"task {task.name!r}: {text!r} holds the token that ends an answer; use another word")
            if not tokens or tuple(tokens) in seen:
                other = seen.get(tuple(tokens), "nothing")
                raise UserError(
                    f"task {task.name!r}: the tokenizer writes {text!r} like {other!r}; use another answer style"
                )
            seen[tuple(tokens)] = text
        return ids

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer: ``answer_end_id``, else the end of the sequence.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.answer_end_id is not None:
            return self.answer_end_id
        assert self.tokenizer is not None
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError("the tokenizer has no end-of-sequence token, so answers cannot end")
        return int(eos[0] if isinstance(eos, list) else eos)

    # --- features -------------------------------------------------------------------------------------------------

    def normalise(self, modality: str, features: np.ndarray) -> np.ndarray:
        """``(T, D_m)`` by the training statistics, or by its own steps', or unchanged where there is neither."""
        kind = self.normalisation.get(modality, GLOBAL)
        if kind == UTTERANCE:
            return normalise_by_own_steps(features)
        statistics = self.statistics.get(modality) if kind != NONE else None
        return statistics.apply(features) if statistics is not None else np.asarray(features, dtype=np.float32)

    def _limits(self) -> dict[str, int]:
        return {"text": self.max_text_tokens, "audio": self.max_audio_steps, "vision": self.max_vision_steps}

    @property
    def read_as_features(self) -> list[str]:
        """Modalities the model reads as features: all but a text whose transcript the backbone embeds."""
        return [m for m in self.feature_sizes if m != "text" or self.text_source != "backbone"]

    def _given_features(self, utterance: Utterance) -> dict[str, np.ndarray]:
        """Feature sequences of the modalities the model reads as features, as they were given."""
        given = {m: getattr(utterance, FEATURE_COLUMNS[m]) for m in self.read_as_features}
        return {m: features for m, features in given.items() if features is not None}

    def check_features(self, utterance: Utterance) -> None:
        """Check the features of an utterance that the model reads.

        Raises:
            UserError: steps of another size, no step at all, one where two are needed, or NaN or infinity in float32.
        """
        for modality, features in self._given_features(utterance).items():
            where = f"utterance {utterance.id!r}: {FEATURE_COLUMNS[modality]}"
            check_sequence(features, self.feature_sizes[modality], where)
            if self.normalisation.get(modality) == UTTERANCE and len(features) < 2:
                raise UserError(f"{where}: one step; normalisation by utterance needs two or more")

    def features(self, utterance: Utterance, checked: bool = False) -> dict[str, np.ndarray]:
        """Normalised, cut feature sequences of the modalities the model reads as features.

        Args:
            checked: whether :meth:`check_features` has seen them.

        Raises:
            UserError: see :meth:`check_features`.
        """
        if not checked:
            self.check_features(utterance)
        limits = self._limits()
        return {m: self.normalise(m, f[: limits[m]]) for m, f in self._given_features(utterance).items()}

    def training_distances(self, utterance: Utterance) -> dict[str, float]:
        """How far the features that the model reads are from the training data, in limits (:class:`TrainingRange`).

        ``{modality: distance}`` of three decimals; a modality whose range is not known is absent.
        """
        given = self._given_features(utterance)
        return {m: round(found.distance(given[m]), 3) for m, found in self.training_ranges.items() if m in given}

    # --- a whole sample -------------------------------------------------------------------------------------------

    def prepare_utterance(self, utterance: Utterance, checked: bool = False) -> PreparedUtterance:
        """Check what the adapter reads of an utterance, unless it is ``checked``, and normalise it.

        Raises:
            UserError: nothing that the model reads, or see :meth:`check_features`.
        """
        text_ids = None
        if self.tokenizer is not None and self.text_source == "backbone" and "text" in self.feature_sizes and utterance.text:
            text_ids = self.encode_words(utterance.text) or None
        features, limits = self.features(utterance, checked), self._limits()
        lengths = {modality: len(steps) for modality, steps in self._given_features(utterance).items()}
        lengths |= {"text": len(text_ids)} if text_ids else {}
        cut = {m: (limits[m], length) for m, length in lengths.items() if length > limits[m]}
        if not features and text_ids is None:
            raise UserError(
                f"utterance {utterance.id!r} has none of the modalities the model reads ({', '.join(self.feature_sizes)})"
            )
        return PreparedUtterance(None if text_ids is None else text_ids[: self.max_text_tokens], features, cut)

    def prepare_prompt(self, utterance: Utterance, task: Task, history: Sequence[HistoryTurn] = ()) -> PromptIds | None:
        """The prompt that asks a task of an utterance; None for an adapter alone."""
        if self.tokenizer is None:
            return None
        where = f"utterance {utterance.id!r}"
        return self.encode_prompt(task, utterance.language, utterance.text, history, where, utterance.speaker)

    def prepare(
        self,
        utterance: Utterance,
        task: Task,
        truth: str | float | None,
        history: Sequence[HistoryTurn] = (),
        prepared: PreparedUtterance | None = None,
    ) -> PreparedSample:
        """Tokenise the question, and normalise the features of one utterance unless they are ``prepared``."""
        where = f"utterance {utterance.id!r}"
        prompt, answer = self.prepare_prompt(utterance, task, history), []
        if self.tokenizer is not None and truth is not None:
            style = self.answer_style(task, utterance.language)
            text = task.answer_text(truth, utterance.language, style)
            answer = [*self.encode_answer(text, task, utterance.language), self.end_token_id]
        known = self.prepare_utterance(utterance) if prepared is None else prepared
        class_target, score_target = -100, float("nan")
        if truth is not None and self.class_task is not None and task.name == self.class_task.name:
            class_target = task.class_index(truth, where)
        if truth is not None and self.score_task is not None and task.name == self.score_task.name:
            score_target = task.score(truth, where)
        return PreparedSample(prompt, answer, known.text_ids, known.features, class_target, score_target)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tokenizer as plain containers, for the checkpoint's own description."""
        return {
            "tasks": {task.name: task.to_dict() for task in self.tasks},
            "prompts": [prompt.to_dict() for prompt in self.prompts],
            "feature_sizes": dict(self.feature_sizes),
            "statistics": {m: s.to_dict() for m, s in self.statistics.items()},
            "num_pseudo_tokens": self.num_pseudo_tokens,
            "text_source": self.text_source,
            "chat": self.chat,
            "max_text_tokens": self.max_text_tokens,
            "max_audio_steps": self.max_audio_steps,
            "max_vision_steps": self.max_vision_steps,
            "max_prompt_tokens": self.max_prompt_tokens,
            "long_clips": self.long_clips,
            "answer_start": self.answer_start,
            "normalisation": dict(self.normalisation),
            "speaker_effects": {m: effects.to_dict() for m, effects in self.speaker_effects.items()},
            "training_ranges": {m: found.to_dict() for m, found in self.training_ranges.items()},
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> MerProcessor:
        """Read :meth:`to_dict` back."""
        entry = {"answer_start": BARE, **entry}
        entry["tasks"] = [Task.from_checkpoint(name, task) for name, task in entry["tasks"].items()]
        entry["prompts"] = [PromptTemplate.from_dict(prompt) for prompt in entry["prompts"]]
        entry["statistics"] = {m: FeatureStatistics.from_dict(s) for m, s in entry["statistics"].items()}
        effects = entry.pop("speaker_effects", {})
        entry["speaker_effects"] = {m: SpeakerEffects.from_dict(e) for m, e in effects.items()}
        ranges = entry.pop("training_ranges", {})
        entry["training_ranges"] = {m: TrainingRange.from_dict(r, f"training_ranges of {m}") for m, r in ranges.items()}
        return cls(tokenizer=tokenizer, **entry)
