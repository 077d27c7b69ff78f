"""The work of ``infer.py``: utterances in groups, answered, and written in the order in which they came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_mer.data.schema import Utterance
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.inference.conversations import Conversations
from llm_mer.inference.dialogues import decode_dialogues
from llm_mer.inference.inputs import InferConfig
from llm_mer.inference.output_file import INPUT, AnswerFile, shorten
from llm_mer.inference.prediction import Prediction, not_finite
from llm_mer.inference.provenance import input_digest

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

logger = logging.getLogger(__name__)
SYNC_EVERY_N_BATCHES = 16
"""Batches a process answers between two barriers, so that none waits for another longer than the job's own patience."""

Item = tuple[int, Utterance]
"""A place in the input, errors counted, and the utterance that stands there."""


def batches(items: Iterable[Item], size: int, by_dialogue: bool) -> Iterator[list[Item]]:
    """Groups of ``size``; with ``by_dialogue`` a dialogue is never torn (its utterances must follow one another)."""
    pending: list[Item] = []
    for item in items:
        dialogue = item[1].dialogue_id
        same = bool(pending) and dialogue is not None and dialogue == pending[-1][1].dialogue_id
        if len(pending) >= size and not same:
            yield pending
            pending = []
        pending.append(item)
        if len(pending) >= size and not by_dialogue:
            yield pending  # at once, so that a live stream is answered before its next line comes
            pending = []
    if pending:
        yield pending


def refusal(pipeline: MerPipeline, utterance: Utterance, tasks: list[str] | None) -> str | None:
    """Why the model's inputs cannot be made of an utterance (a feature size, a turn, too long a prompt), or None."""
    processor = pipeline.predictor.processor
    try:
        for question in pipeline.dataset([utterance], tasks).questions:
            processor.prepare(utterance, question.task, None)
    except UserError as error:
        return str(error)
    return None


def decode_groups(pipeline: MerPipeline, predictions: list[Prediction], mode: str) -> list[Prediction]:
    """The dialogue decoder on whole dialogues, for every task that has a shift probability."""
    known = {task.name: task for task in pipeline.tasks}
    decoded = list(predictions)
    for name, p_shift in pipeline.description.shift_probability.items():
        rows = [i for i, p in enumerate(predictions) if p.task == name]
        for i, prediction in zip(
            rows, decode_dialogues([predictions[i] for i in rows], known[name], p_shift, mode), strict=True
        ):
            decoded[i] = prediction
    return decoded


@dataclass
class Answering:
    """One run over an input.

    What becomes of an utterance is a line in ``out``: its answers, or why there are none. A group is held until it is
    answered whole and then written in the order of the input, so a run that is killed lacks whole groups, the last ones.

    Attributes:
        answered: called with how many utterances were newly answered. echo: called with every answer that is written.
    """

    config: InferConfig
    pipeline: MerPipeline
    processes: ProcessGroup
    out: AnswerFile
    answered: Callable[[int], None]
    echo: Callable[[Prediction], None] | None = None
    live: Conversations | None = field(init=False, default=None)
    held: list[tuple[int, dict[str, Any]]] = field(init=False, default_factory=list)
    stopped: tuple[int, UserError] | None = field(init=False, default=None)
    """Where the input ends because of a bad one under ``--on_bad_input stop``."""
    unasked: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        config, pipeline = self.config, self.pipeline
        asked = pipeline.named_tasks(config.tasks)
        decoding = config.dialogue_decoder != "none"
        self.targets = {task.target for task in asked}
        self.decodes = decoding and any(task.name in pipeline.description.shift_probability for task in asked)
        shown_turns = pipeline.predictor.processor.most_context_turns
        self.whole_dialogues = pipeline.predictor.adapter.uses_context or decoding or shown_turns > 0
        if config.stdin:
            self.live = Conversations(pipeline, config.tasks, config.dialogue_decoder == "online")

    def run(self, items: Iterable[Utterance | tuple[str, str]]) -> int:
        """Answer everything; returns how many utterances this process answered.

        The groups are those of one process however many there are, and one that an interrupted run tore is answered whole
        again, so that every number is the same wherever the run was stopped.

        Raises:
            UserError: under ``--on_bad_input stop``, the first input that cannot be used, what stands before it written.
        """
        processes, total = self.processes, 0
        size = 1 if self.live else self.config.batch_size * self.config.read_ahead
        groups = batches(self._utterances(items), size, self.whole_dialogues and self.live is None)
        for turn, group in enumerate(groups):
            if turn % (SYNC_EVERY_N_BATCHES * processes.world_size) == 0:
                processes.gather(None)
            if turn % processes.world_size != processes.rank:
                continue
            if all(utterance.id in self.out.done for _, utterance in group):
                if self.live is not None:
                    self._say_answered_before(group[0][1])
                continue
            new = self._answer_group(group)
            total += new
            self.answered(new)
        self._settle(float("inf"))
        return total

    def _utterances(self, items: Iterable[Utterance | tuple[str, str]]) -> Iterator[Item]:
        """Utterances with their places; lines that cannot be used are reported by one of the processes."""
        for place, item in enumerate(items):
            if isinstance(item, Utterance):
                self._say_unasked(item)
                yield place, item
            elif item[0] not in self.out.done and place % self.processes.world_size == self.processes.rank:
                self._write(place, {"id": item[0], "error": item[1]})
                if self.live is not None:
                    self.out.flush()

    def _answer_group(self, given: list[Item]) -> int:
        """Answer and write a group; returns how many of its utterances were not answered before."""
        digests = {utterance.id: input_digest(utterance) for _, utterance in given} if self.config.output else {}
        group = self._with_features(given, digests)
        predictions = self._predict(group, digests)
        if self.live is None and self.config.dialogue_decoder != "none":
            predictions = decode_groups(self.pipeline, predictions, self.config.dialogue_decoder)
        # All answers of an utterance are written together, so a resumed run never lacks one of them.
        places = {utterance.id: place for place, utterance in group}
        for prediction in sorted(predictions, key=lambda p: places[p.id]):
            if prediction.id not in self.out.done and not self._write_answer(places[prediction.id], prediction, digests):
                break
        self._settle(self.stopped[0] - 1 if self.stopped else given[-1][0])
        if self.stopped:
            raise self.stopped[1]
        return sum(utterance.id not in self.out.done for _, utterance in group)

    def _with_features(self, given: list[Item], digests: dict[str, str]) -> list[Item]:
        """The group with features; an utterance that has none becomes a line and leaves it, or ends it."""
        found: list[Item] = []
        for place, utterance in given:
            try:
                if self.decodes and utterance.dialogue_id is not None and utterance.speaker is None:
                    raise UserError(f"utterance {utterance.id!r} has no speaker; the dialogue decoder needs one")
                if self.decodes and self.live is not None:
                    self.live.check_order(utterance)
                found.append((place, self.pipeline.with_features(utterance)))
            except UserError as error:
                if self.config.on_bad_input == "stop":
                    self._stop(place, error)
                    break
                self._refuse(place, utterance.id, str(error), digests)
        return found

    def _predict(self, group: list[Item], digests: dict[str, str]) -> list[Prediction]:
        """Predictions of a group; an utterance that cannot be answered becomes a line and leaves it, or ends it."""
        while group:
            utterances = [utterance for _, utterance in group]
            try:
                if self.live is not None:
                    return self.live(utterances[0])
                return self.pipeline.answer(utterances, self.config.tasks)
            except UserError as error:
                tasks = self.config.tasks
                bad = {u.id: message for u in utterances if (message := refusal(self.pipeline, u, tasks)) is not None}
                if not bad:
                    raise error from None
                if self.config.on_bad_input == "stop":
                    first = next(i for i, utterance in enumerate(utterances) if utterance.id in bad)
                    self._stop(group[first][0], UserError(bad[utterances[first].id]))
                    del group[first:]
                    continue
                for place, utterance in group:
                    if utterance.id in bad:
                        self._refuse(place, utterance.id, bad[utterance.id], digests)
                group[:] = [item for item in group if item[1].id not in bad]
        return []

    def _write_answer(self, place: int, prediction: Prediction, digests: dict[str, str]) -> bool:
        """One answer as a line; False where the input ends here."""
        entry = prediction.to_dict()
        if not prediction.is_finite:
            message = not_finite(prediction)
            if self.config.on_bad_input == "stop":
                self._stop(place, UserError(f"utterance {prediction.id!r}: {message}"))
                return False
            self._refuse(place, prediction.id, message, digests)
            return True
        entry = entry if self.config.full else shorten(entry)
        self._write(place, entry | ({INPUT: digests[prediction.id]} if digests else {}))
        if self.echo is not None:
            self.echo(prediction)
        return True

    def _refuse(self, place: int, name: str, message: str, digests: dict[str, str]) -> None:
        """A line that says why there is no answer, unless there is one already."""
        if name not in self.out.done:
            self._write(place, {"id": name, "error": message} | ({INPUT: digests[name]} if digests else {}))

    def _stop(self, place: int, error: UserError) -> None:
        """End at this place of the input, what stands before it answered; at once where dialogues are answered whole."""
        if self.whole_dialogues:
            raise error
        self.stopped = place, error

    def _write(self, place: int, entry: dict[str, Any]) -> None:
        if self.live is None:
            self.held.append((place, entry))
        else:
            self.out.write(place, entry)

    def _settle(self, last: float) -> None:
        """Write what is held of the input up to ``last``, in its order; what a kill takes is answered again."""
        for place, entry in sorted((line for line in self.held if line[0] <= last), key=lambda line: line[0]):
            self.out.write(place, entry)
        self.held = [line for line in self.held if line[0] > last]
        self.out.flush()

    def _say_answered_before(self, utterance: Utterance) -> None:
        before = self.out.done[utterance.id]
        changed = before is not None and before != input_digest(utterance)
        logger.warning(
            "%s is answered already in %s%s; give each line an id of its own",
            utterance.id,
            self.config.output,
            ", from another input" if changed else "",
        )

    def _say_unasked(self, utterance: Utterance) -> None:
        new = utterance.labels.keys() - self.targets - self.unasked
        if new and self.processes.is_first:
            logger.info("labels %s are of no task that is asked here; they are passed over", ", ".join(sorted(new)))
        self.unasked |= new
