"""What the dialogue decoder needs of a data set, told before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence

from llm_mer.data.dataset import MerDataset
from llm_mer.errors import UserError
from llm_mer.inference.dialogues import doubled_turn
from llm_mer.prompting.tasks import Task


def check_dialogues(dataset: MerDataset, tasks: Sequence[Task], shifts: dict[str, float], checkpoint: str) -> None:
    """What the dialogue decoder needs, told before anything is predicted.

    Raises:
        UserError: no task with classes, no p0 in the checkpoint, no dialogue, an utterance of a dialogue without a speaker,
            or two at one turn.
    """
    classified = [task.name for task in tasks if task.kind == "classification"]
    if not classified:
        raise UserError("--dialogue_decoder: no task has classes to decode")
    if any(name not in shifts for name in classified):
        raise UserError(f"the training data of {checkpoint} had no dialogues: no p0 for the dialogue decoder")
    seen: dict[tuple[str, str, int | None], str] = {}
    for row in sorted({q.row for q in dataset.questions if q.task.name in classified}):
        if dataset.dialogue(row) is not None and dataset.speaker(row) is None:
            raise UserError(
                f"dialogue {dataset.dialogue(row)!r} has utterances without a speaker; the dialogue decoder needs them"
            )
        if (dialogue := dataset.dialogue(row)) is not None:
            name, turn = dataset.identifier(row), dataset.turn(row)
            if (first := seen.setdefault((dialogue, dataset.language(row), turn), name)) != name:
                raise UserError(doubled_turn(dialogue, turn, first, name))
    if not seen:
        raise UserError("--dialogue_decoder: no utterance belongs to a dialogue, so there is nothing to decode")
