"""A live stream of utterances, each answered with its dialogue so far, in bounded memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction
from llm_mer.scoring.dialogue_decoder import OnlineDialogueDecoder

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

CONVERSATIONS_KEPT = 256
"""Dialogues of a stream whose last utterances and beams are kept, the most recent ones."""


@dataclass
class Conversation:
    """What is kept of one dialogue: its last utterances, and the beam of each task."""

    earlier: list[Utterance] = field(default_factory=list)
    decoders: dict[str, OnlineDialogueDecoder] = field(default_factory=dict)


class Conversations:
    """Answers one utterance at a time with the dialogue so far: for a live stream.

    Keeps the last ``window`` utterances of each dialogue, which context adapters and prompts with earlier turns read, and
    the beam of an online dialogue decoder, for the last ``CONVERSATIONS_KEPT`` dialogues: neither time nor memory grows
    with the stream.
    """

    def __init__(self, pipeline: MerPipeline, tasks: list[str] | None, decode: bool) -> None:
        self.pipeline, self.tasks, self.decode = pipeline, tasks, decode
        self.known = {task.name: task for task in pipeline.tasks}
        self.window = max(
            int(pipeline.description.context.get("window", 8)), pipeline.predictor.processor.most_context_turns + 1
        )
        self.kept: dict[tuple[str, str], Conversation] = {}

    def __call__(self, utterance: Utterance) -> list[Prediction]:
        """The answers about this utterance, as ``MerPipeline.with_features`` returns it."""
        if utterance.dialogue_id is None:
            return self.pipeline.answer([utterance], self.tasks)
        place = (utterance.language, utterance.dialogue_id)
        conversation = self.kept.get(place, Conversation())
        window = [*conversation.earlier, utterance]
        predictions = self.pipeline.answer(window, self.tasks, last_only=True)
        if self.decode:
            predictions = [self._decoded(p, conversation) for p in predictions]
        conversation.earlier = window[-self.window :]
        self.kept.pop(place, None)
        self.kept[place] = conversation
        if len(self.kept) > CONVERSATIONS_KEPT:
            del self.kept[next(iter(self.kept))]
        return predictions

    def check_order(self, utterance: Utterance) -> None:
        """Raises :class:`UserError` for a turn that comes after a later one: the beam has gone past it."""
        conversation = self.kept.get((utterance.language, utterance.dialogue_id or ""))
        if conversation is None or utterance.turn is None:
            return
        last = conversation.earlier[-1].turn
        if last is not None and utterance.turn <= last:
            raise UserError(
                f"utterance {utterance.id!r}: turn {utterance.turn} of dialogue {utterance.dialogue_id!r} comes after turn "
                f"{last}; the online decoder takes turns as they rise"
            )

    def _decoded(self, prediction: Prediction, conversation: Conversation) -> Prediction:
        p_shift = self.pipeline.description.shift_probability.get(prediction.task)
        if p_shift is None:
            return prediction
        if prediction.speaker is None:
            raise UserError(f"utterance {prediction.id!r} has no speaker; the dialogue decoder needs one")
        task = self.known[prediction.task]
        decoder = conversation.decoders.setdefault(task.name, OnlineDialogueDecoder(task.num_classes, p_shift))
        state = decoder.push(np.asarray(prediction.log_probabilities), prediction.speaker)
        return dataclasses.replace(prediction, value=task.label_names[state])
