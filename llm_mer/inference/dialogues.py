"""The dialogue decoder over the predictions of whole dialogues."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.dialogue_decoder import OnlineDialogueDecoder, decode


def decode_dialogues(
    predictions: Sequence[Prediction], task: Task, p_shift: float, mode: str = "offline"
) -> list[Prediction]:
    """Predictions of a classification task with each dialogue decoded whole (SYSTEMS, GatedxLSTM 5).

    ``offline`` is the paper's two passes, ``online`` emits each state when its utterance arrives. Utterances without a
    dialogue stay as they are.

    Raises:
        UserError: a dialogue without speakers.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prediction in enumerate(predictions):
        if prediction.dialogue_id is not None:
            groups.setdefault((prediction.language, prediction.dialogue_id), []).append(index)
    decoded = list(predictions)
    for (_, dialogue), members in groups.items():
        members.sort(key=lambda i: predictions[i].turn or 0)
        speakers = [predictions[i].speaker for i in members]
        if any(speaker is None for speaker in speakers):
            raise UserError(f"dialogue {dialogue!r} has utterances without a speaker; the dialogue decoder needs them")
        scores = np.array([predictions[i].log_probabilities for i in members])
        if mode == "online":
            decoder = OnlineDialogueDecoder(scores.shape[1], p_shift)
            states = [decoder.push(row, speaker) for row, speaker in zip(scores, speakers, strict=True)]
        else:
            states = [int(s) for s in decode(scores, speakers, p_shift)]
        for index, state in zip(members, states, strict=True):
            decoded[index] = dataclasses.replace(predictions[index], value=task.label_names[state])
    return decoded
