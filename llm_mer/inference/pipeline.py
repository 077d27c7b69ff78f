"""A checkpoint ready to answer about clips, texts and features."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_mer.adapters import use_adapter
from llm_mer.checkpoints.calibration import Calibration
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.hub import resolve_checkpoint
from llm_mer.checkpoints.precision import AUTO
from llm_mer.data.dataset import MerDataset
from llm_mer.data.feature_scale import check_scale
from llm_mer.data.feature_settings import check_same_features
from llm_mer.data.long_clips import REFUSE, check_long_clips
from llm_mer.data.missing_values import check_transcript
from llm_mer.data.reading import read_utterances
from llm_mer.data.schema import Utterance
from llm_mer.data.speaker_effects import KnownSpeakers
from llm_mer.data.store import FEATURE_COLUMNS
from llm_mer.errors import UserError, first_line
from llm_mer.inference.clips import as_utterance, utterance_from_fields
from llm_mer.inference.prediction import Prediction, require_finite_answers
from llm_mer.inference.predictor import Predictor
from llm_mer.inference.windows import ClipWindows, windows_remedy
from llm_mer.model.step_limits import StepLimits, check_dataset_lengths
from llm_mer.prompting.languages import LANGUAGES, require_language
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.engines.base import open_engine
from llm_mer.storage.quoting import quote

logger = logging.getLogger(__name__)

OPTIONS: dict[str, type] = {
    "batch_size": int,
    "score_statistic": str,
    "generate": bool,
    "answer_end": bool,
    "answer": str,
    "keep_features": bool,
    "calibration": bool,
}
"""Options of :meth:`MerPipeline.from_pretrained` that decide how it answers, and their kinds."""
KINDS = {int: "a whole number", str: "a text", bool: "True or False"}
LONGEST_REASON = 160
"""Characters of what torch says of a device; some of it lists every kernel there is."""


def check_device(device: str | int | torch.device) -> None:
    """Raises :class:`UserError` for a device torch does not know, this machine does not have, or that computes nothing."""
    if str(device).partition(":")[0] == "meta":
        raise UserError("device 'meta' cannot be used: it holds no numbers")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # each backend says so in its own way
        reason = textwrap.shorten(first_line(error), LONGEST_REASON, placeholder=" …")
        raise UserError(f"device {str(device)!r} cannot be used: {reason}") from None


def check_options(options: Mapping[str, Any]) -> None:
    """Raises :class:`UserError` for an option that is not one of :data:`OPTIONS`, or of another kind: 'no' is not False."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise UserError(f"unknown option {name!r}; choose from {', '.join(OPTIONS)}")
        wanted = OPTIONS[name]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise UserError(f"{name} is {quote(value)}; it must be {KINDS[wanted]}")


@dataclass
class MerPipeline:
    """A checkpoint ready to answer about clips, texts and features; ``folder`` is where it lies on this machine.

    A checkpoint that normalises features by speaker knows those of :meth:`know_speakers`; of anybody else it knows the
    utterance it is asked about, so answers do not depend on what is asked beside it. A clip that is longer than the
    checkpoint reads is refused, unless it is asked about in windows or ``long_clips`` is ``cut``.

    Example:
        >>> pipeline = MerPipeline.from_pretrained("runs/quickstart/egmf")
        >>> for prediction in pipeline(video="clip.mp4", text="I am fine."):
        ...     print(prediction.task, prediction.value)
    """

    predictor: Predictor
    description: CheckpointDescription
    folder: Path
    speakers: KnownSpeakers | None = None
    long_clips: str = REFUSE

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: Path | str,
        revision: str | None = None,
        *,
        backbone: str | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = AUTO,
        engine: str = "transformers",
        engine_options: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        calibration: bool = True,
        long_clips: str = REFUSE,
        windows: float | None = None,
        window_overlap: float = 0.0,
        **options: Any,
    ) -> MerPipeline:
        """Load a checkpoint; ``options`` are those of :class:`Predictor`.

        Args:
            checkpoint: a folder, or a name on the hub (``owner/name``). revision: branch, tag or commit of the latter.
            backbone: use this backbone instead of the recorded one. device: default, the accelerator if there is one.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``: what the language model computes with, said by each
                answer (:attr:`Prediction.precision`); ``auto`` is float32 on a CPU, else the type it was trained with.
            adapter: ``package.module:Class`` of a checkpoint whose adapter is a class of yours. A checkpoint alone never
                has such a module imported.
            engine: what runs the language model, one of :data:`~llm_mer.scoring.engines.base.ENGINES`.
            engine_options: its own options.
            calibration: take what ``llm-mer calibrate`` left in the checkpoint, where it did: temperatures, and the weights
                of ``answer="pooled"``.
            long_clips: ``refuse`` a clip that is longer than the checkpoint reads, or ``cut`` it: read its beginning alone.
            windows: seconds of the windows in which longer clips are asked about; the answer is their mean and holds that
                of each (:mod:`llm_mer.inference.windows`). window_overlap: seconds that neighbours share at least.

        Raises:
            UserError: an option that is unknown or of another kind; a folder that is no checkpoint, or one of another
                adapter; a hub name that cannot be fetched; a device or an engine that cannot be used; temperatures of other
                weights.
        """
        check_options({"calibration": calibration, **options})
        check_long_clips(long_clips, windows, window_overlap)
        if adapter is not None:
            use_adapter(adapter)
        if device is not None:
            check_device(device)
        folder = resolve_checkpoint(checkpoint, revision)
        opened = open_engine(engine, folder, backbone, device, engine_options, dtype)
        loaded = opened.loaded
        trained_with = loaded.description.model["adapter"]
        if adapter is not None and adapter != trained_with:
            raise UserError(f"adapter: {folder} was trained with {trained_with}, not {adapter}")
        fitted = Calibration.load(folder) if calibration else None
        if fitted is not None:
            options |= {"temperatures": fitted.by_question(), "pool_weights": fitted.pool_weights()}
        predictor = Predictor(loaded.model, loaded.processor, engine=opened.engine, **options)
        if fitted is not None and (note := fitted.other_precision(predictor.precision)) is not None:
            logger.warning(note)
        pipeline = cls(predictor, loaded.description, folder, long_clips=long_clips)
        if windows is not None:
            predictor.windows = ClipWindows(windows, window_overlap, pipeline.step_limits)
        return pipeline

    @property
    def step_limits(self) -> StepLimits:
        """How much of a clip the checkpoint reads."""
        made = self.description.data.get("features")
        return StepLimits.of(self.predictor.processor, self.predictor.adapter, made)

    def check_length(self, utterance: Utterance) -> None:
        """Refuse an utterance of which only the beginning would be read, unless windows or cutting were asked for.

        Raises:
            UserError: what would be lost, and what to do.
        """
        limits = self.step_limits
        excess = limits.excess(limits.lengths(utterance))
        if excess and self.long_clips == REFUSE and self.predictor.windows is None:
            raise UserError(f"utterance {utterance.id!r}: {limits.describe(excess)}; {windows_remedy(limits)}")

    def check_dataset_lengths(self, dataset: MerDataset, where: str) -> None:
        """As :meth:`check_length`, of all utterances that are asked about; their features are not read for it."""
        if self.long_clips == REFUSE and self.predictor.windows is None:
            check_dataset_lengths(dataset, self.step_limits, where, partial(windows_remedy, self.step_limits))

    @property
    def tasks(self) -> list[Task]:
        """The tasks the checkpoint was trained on."""
        return self.predictor.processor.tasks

    def dataset(self, utterances: Sequence[Utterance], tasks: Sequence[str] | None = None) -> MerDataset:
        """Utterances as questions: every task of the checkpoint, or the named ones."""
        return self.questions(list(utterances), self.named_tasks(tasks), require_truth=False)

    def named_tasks(self, names: Sequence[str] | None) -> list[Task]:
        """These tasks of the checkpoint, all where ``names`` is None.

        Raises:
            UserError: no list of names, an empty one, one the checkpoint was not trained on, or one named twice: each answer
                would count twice, and intervals would be too narrow.
        """
        known = {task.name: task for task in self.tasks}
        if names is None:
            return list(known.values())
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise UserError(f"tasks: {quote(names)} is no list; give a list of names, e.g. {[next(iter(known))]}")
        requested = list(names)
        for name in requested:
            if not isinstance(name, str) or name not in known:
                raise UserError(f"the checkpoint was not trained on task {quote(name)}; it knows {', '.join(known)}")
        if len(set(requested)) != len(requested):
            raise UserError(f"tasks: {requested} names a task twice")
        if not requested:
            raise UserError(f"tasks: names no task; leave it out for all, or choose from {', '.join(known)}")
        return [known[name] for name in requested]

    def questions(self, utterances: Sequence[Utterance], tasks: list[Task], **options: Any) -> MerDataset:
        """Utterances as questions in the windows the checkpoint was trained with; ``options`` are of :class:`MerDataset`."""
        context = self.description.context
        return MerDataset(
            utterances,
            tasks,
            context_window=int(context.get("window", 8)),
            bidirectional=bool(context.get("bidirectional", False)),
            **options,
        )

    def __call__(
        self,
        utterances: Sequence[Utterance | Mapping[str, Any]] | None = None,
        tasks: Sequence[str] | None = None,
        last_only: bool = False,
        **fields: Any,
    ) -> list[Prediction]:
        """Answer every task about one utterance, given by its fields, or about each of a list.

        ``pipeline(video="clip.mp4", text="…")`` answers about one; ``pipeline([…])`` about utterances, each an
        :class:`Utterance` or a dict of the same fields. Media are decoded with the checkpoint's own feature settings.

        Args:
            tasks: only these tasks of the checkpoint.
            last_only: only the last of the list is asked about; those before it are its conversation.
            **fields: any of :data:`~llm_mer.inference.clips.FIELDS`, of one utterance.

        Returns:
            One :class:`Prediction` an utterance and task, in the order of both.

        Raises:
            UserError: nothing or both given, an utterance that cannot be read or answered, or an answer that is not finite.
        """
        if (utterances is None) == (not fields):
            raise UserError("give either a list of utterances or the fields of one, e.g. video=…, text=…")
        if utterances is None:
            asked_about = [utterance_from_fields(fields)]
        elif isinstance(utterances, Utterance | Mapping | str | bytes) or not isinstance(utterances, Iterable):
            raise UserError("utterances: give a list; one utterance is given by its fields, e.g. video=…, text=…")
        else:
            asked_about = [as_utterance(entry, place) for place, entry in enumerate(utterances)]
        predictions = self.answer([self.with_features(utterance) for utterance in asked_about], tasks, last_only)
        require_finite_answers(predictions)
        return predictions

    def answer(
        self, utterances: Sequence[Utterance], tasks: Sequence[str] | None = None, last_only: bool = False
    ) -> list[Prediction]:
        """As a call, about utterances as :meth:`with_features` returns them, which are not checked again.

        An answer may hold NaN or infinity: its caller looks at ``Prediction.is_finite``.
        """
        dataset = self.questions(list(utterances), self.named_tasks(tasks), require_truth=False, checked=True)
        if self.predictor.processor.speaker_effects:
            dataset.speakers_known = self.speakers or KnownSpeakers(self.predictor.processor.speaker_effects)
        indices = [i for i, q in enumerate(dataset.questions) if not last_only or q.row == len(utterances) - 1]
        return self.predictor.predict(dataset, indices)

    def know_speakers(self, data: str) -> str:
        """Learn from earlier utterances what distinguishes each speaker; no label of theirs is read.

        Args:
            data: a store or ``FORMAT:PATH``, all splits of which count.

        Returns:
            The fingerprint of the data.

        Raises:
            UserError: a checkpoint that does not normalise by speaker, features made otherwise than the checkpoint's, or no
                utterance with a speaker.
        """
        effects = self.predictor.processor.speaker_effects
        if not effects:
            raise UserError(f"speaker_data: {self.folder.name} was not trained with normalisation by speaker; leave it out")
        splits, made, fingerprint = read_utterances(data)
        for name, utterances in splits.items():
            self.check_features(utterances, made, f"{data}, split {name!r}")
        everything = (utterance for utterances in splits.values() for utterance in utterances)
        self.speakers = KnownSpeakers.of(everything, effects, data)
        return fingerprint

    def stream(
        self,
        utterances: Iterable[Utterance | Mapping[str, Any]],
        batch_size: int = 16,
        tasks: Sequence[str] | None = None,
    ) -> Iterator[Prediction]:
        """Answers as utterances arrive, ``batch_size`` at a time.

        Utterances of one dialogue see those of their own batch; use one call for a whole dialogue where context counts.

        Raises:
            UserError: a batch size that is no whole number from 1 up, which would never be filled; see :meth:`__call__`.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {quote(batch_size)}; it must be a whole number of at least 1")
        pending: list[Utterance | Mapping[str, Any]] = []
        for utterance in utterances:
            pending.append(utterance)
            if len(pending) == batch_size:
                yield from self(pending, tasks)
                pending = []
        if pending:
            yield from self(pending, tasks)

    def with_features(self, utterance: Utterance) -> Utterance:
        """Extract features from media as the training data's were, where the utterance has media and no features."""
        reads = self.predictor.processor.feature_sizes
        wants_audio = "audio" in reads and utterance.audio is not None and utterance.audio_features is None
        wants_vision = "vision" in reads and utterance.vision is not None and utterance.vision_features is None
        settings = self.description.data.get("features")
        wants_text = (
            utterance.text is not None
            and utterance.text_features is None
            and self.predictor.processor.text_source == "features"
            and "text" in reads
        )
        if not (wants_audio or wants_vision or wants_text):
            return self._usable(utterance)
        if not settings:
            raise UserError(
                f"utterance {utterance.id!r} comes as media, but the checkpoint was trained on features whose extraction "
                "it does not know; give features instead"
            )
        from llm_mer.data.feature_settings import FeatureSettings
        from llm_mer.features.extractor import extract_one

        wanted = dataclasses.replace(
            utterance,
            audio=utterance.audio if wants_audio else None,
            vision=utterance.vision if wants_vision else None,
        )
        return self._usable(extract_one(wanted, FeatureSettings.from_dict(settings)))

    def check_features(self, utterances: Sequence[Utterance], made: Mapping[str, Any], where: str) -> None:
        """Refuse features made otherwise than those the checkpoint was trained on.

        Args:
            made: what the utterances' store says of itself (:attr:`StoreInfo.description`), empty where nobody does.

        Raises:
            UserError: naming ``where`` and each setting with both values, or features that are plainly of another scale.
        """
        processor = self.predictor.processor
        read = [m for m in processor.feature_sizes if m != "text" or processor.text_source == "features"]
        check_same_features(self.description.data, made, read, where, "the checkpoint")
        check_scale(utterances, {m: processor.statistics[m] for m in read if m in processor.statistics}, where)

    def _usable(self, utterance: Utterance) -> Utterance:
        """The utterance with its language, if it has something the adapter reads and its features can be.

        Without a transcript to tell it from, the language is that of the checkpoint's prompts where they have one alone.

        Raises:
            UserError: saying what the adapter reads, what is wrong with the features, or that the language is not told.
        """
        self.predictor.processor.check_features(utterance)
        self.check_length(utterance)
        check_transcript(utterance.text, f"utterance {utterance.id!r}")
        self.check_features([utterance], {}, f"utterance {utterance.id!r}")
        read = self.predictor.adapter.config.modalities
        has = {m for m, column in FEATURE_COLUMNS.items() if getattr(utterance, column) is not None}
        if self.predictor.processor.text_source == "backbone" and utterance.text:
            has.add("text")
        if not has & set(read):
            raise UserError(
                f"utterance {utterance.id!r} has none of the modalities the checkpoint reads ({', '.join(read)}); "
                f"found {', '.join(sorted(has)) or 'nothing'}"
            )
        asks_in_words = self.predictor.processor.tokenizer is not None
        if asks_in_words and utterance.language not in LANGUAGES:
            spoken = {prompt.language for prompt in self.predictor.processor.prompts}
            only = spoken.pop() if len(spoken) == 1 and not utterance.language else utterance.language
            language = require_language(only, f"utterance {utterance.id!r}")
            utterance = dataclasses.replace(utterance, language=language)
        return utterance
