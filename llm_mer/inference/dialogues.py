"""The dialogue decoder over the predictions of whole dialogues."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.dialogue_decoder import OnlineDialogueDecoder, decode


def check_dialogues_together(items: Iterable[Utterance | tuple[str, str]], decoding: bool) -> None:
    """Check a stream that is answered a part at a time: a dialogue is complete only where its utterances stand side by side.

    Holds the names of the dialogues. ``(id, message)`` of a line that cannot be used is passed over.

    Args:
        decoding: whether dialogues are decoded, which needs one order of their turns, and a dialogue to decode.

    Raises:
        UserError: a dialogue that goes on after another one has begun, a turn given twice, or nothing to decode.
    """
    begun: set[str] = set()
    current: str | None = None
    turns: dict[tuple[str, int | None], str] = {}
    for item in items:
        if not isinstance(item, Utterance):
            continue
        if item.dialogue_id != current:
            if item.dialogue_id in begun:
                raise UserError(
                    f"dialogue {item.dialogue_id!r}: {item.id!r} comes after utterances of another; let the utterances of a "
                    "dialogue follow one another"
                )
            current, turns = item.dialogue_id, {}
            begun |= set() if current is None else {current}
        first = turns.setdefault((item.language, item.turn), item.id)
        if decoding and current is not None and item.turn is not None and first != item.id:
            raise UserError(doubled_turn(current, item.turn, first, item.id))
    if decoding and not begun:
        raise UserError("--dialogue_decoder: no utterance has a dialogue_id, so there is nothing to decode")


def doubled_turn(dialogue: str, turn: int | None, first: str, second: str) -> str:
    """What to say of two utterances at one place of a dialogue."""
    return (
        f"dialogue {dialogue!r} has turn {turn} twice ({first!r}, {second!r}); the dialogue decoder needs to know which "
        "came first"
    )


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
