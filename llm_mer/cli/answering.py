"""The main loop of ``infer.py``: utterances are answered in groups and written in input order."""

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
"""Batches between two barriers, so that no process waits for another longer than the job's timeout."""

Item = tuple[int, Utterance]
"""Position in the input, errors included, and the utterance at that position."""


def batches(items: Iterable[Item], size: int, by_dialogue: bool) -> Iterator[list[Item]]:
    """Groups of ``size``; with ``by_dialogue`` a dialogue is never split (its utterances must be consecutive)."""
    pending: list[Item] = []
    for item in items:
        dialogue = item[1].dialogue_id
        same = bool(pending) and dialogue is not None and dialogue == pending[-1][1].dialogue_id
        if len(pending) >= size and not same:
            yield pending
            pending = []
        pending.append(item)
        if len(pending) >= size and not by_dialogue:
            yield pending  # immediately, so that a live stream is answered before its next line
            pending = []
    if pending:
        yield pending


def find_input_error(pipeline: MerPipeline, utterance: Utterance, tasks: list[str] | None) -> str | None:
    """The error that keeps an utterance from becoming model inputs (feature size, turn, prompt length), or None."""
    processor = pipeline.predictor.processor
    try:
        for question in pipeline.dataset([utterance], tasks).questions:
            processor.prepare(utterance, question.task, None)
    except UserError as error:
        return str(error)
    return None


def decode_with_dialogue_decoder(pipeline: MerPipeline, predictions: list[Prediction], mode: str) -> list[Prediction]:
    """Apply the dialogue decoder to whole dialogues, for every task with a shift probability."""
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
class AnsweringRun:
    """One run over an input.

    Every utterance becomes lines in ``out``: its answers, or an error. A group is buffered until it is answered completely
    and then written in input order, so a killed run lacks only whole groups at the end.

    Attributes:
        answered: called with the number of newly answered utterances. echo: called with every answer that is written.
    """

    config: InferConfig
    pipeline: MerPipeline
    processes: ProcessGroup
    out: AnswerFile
    answered: Callable[[int], None]
    echo: Callable[[Prediction], None] | None = None
    live: Conversations | None = field(init=False, default=None)
    pending: list[tuple[int, dict[str, Any]]] = field(init=False, default_factory=list)
    stopped: tuple[int, UserError] | None = field(init=False, default=None)
    """Position and error of the bad input at which ``--on_bad_input stop`` ends the run."""
    reported_labels: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        config, pipeline = self.config, self.pipeline
        requested = pipeline.named_tasks(config.tasks)
        decoding = config.dialogue_decoder != "none"
        self.targets = {task.target for task in requested}
        self.decodes = decoding and any(task.name in pipeline.description.shift_probability for task in requested)
        shown_turns = pipeline.predictor.processor.most_context_turns
        self.whole_dialogues = pipeline.predictor.adapter.uses_context or decoding or shown_turns > 0
        if config.stdin:
            self.live = Conversations(pipeline, config.tasks, config.dialogue_decoder == "online")

    def run(self, items: Iterable[Utterance | tuple[str, str]]) -> int:
        """Answer everything; returns the number of utterances answered by this process.

        Groups do not depend on the number of processes, and a group that an interrupted run left incomplete is answered
        again as a whole, so every number is the same wherever the run was stopped.

        Raises:
            UserError: under ``--on_bad_input stop``, the first input that cannot be used; everything before it is written.
        """
        processes, total = self.processes, 0
        size = 1 if self.live else self.config.batch_size * self.config.read_ahead
        groups = batches(self._utterances(items), size, self.whole_dialogues and self.live is None)
        for number, group in enumerate(groups):
            if number % (SYNC_EVERY_N_BATCHES * processes.world_size) == 0:
                processes.gather(None)
            if number % processes.world_size != processes.rank:
                continue
            if all(utterance.id in self.out.done for _, utterance in group):
                if self.live is not None:
                    self._warn_already_answered(group[0][1])
                continue
            newly_answered = self._answer_group(group)
            total += newly_answered
            self.answered(newly_answered)
        self._write_pending(float("inf"))
        return total

    def _utterances(self, items: Iterable[Utterance | tuple[str, str]]) -> Iterator[Item]:
        """Utterances with their positions; unusable lines are reported by one of the processes."""
        for position, item in enumerate(items):
            if isinstance(item, Utterance):
                self._report_unused_labels(item)
                yield position, item
            elif item[0] not in self.out.done and position % self.processes.world_size == self.processes.rank:
                self._write(position, {"id": item[0], "error": item[1]})
                if self.live is not None:
                    self.out.flush()

    def _answer_group(self, items: list[Item]) -> int:
        """Answer and write a group; returns the number of its utterances that were not answered before."""
        digests = {utterance.id: input_digest(utterance) for _, utterance in items} if self.config.output else {}
        group = self._with_features(items, digests)
        predictions = self._predict(group, digests)
        if self.live is None and self.config.dialogue_decoder != "none":
            predictions = decode_with_dialogue_decoder(self.pipeline, predictions, self.config.dialogue_decoder)
        # All answers of an utterance are written together, so a resumed run never misses one of them.
        positions = {utterance.id: position for position, utterance in group}
        for prediction in sorted(predictions, key=lambda p: positions[p.id]):
            if prediction.id not in self.out.done and not self._write_answer(positions[prediction.id], prediction, digests):
                break
        self._write_pending(self.stopped[0] - 1 if self.stopped else items[-1][0])
        if self.stopped:
            raise self.stopped[1]
        return sum(utterance.id not in self.out.done for _, utterance in group)

    def _with_features(self, items: list[Item], digests: dict[str, str]) -> list[Item]:
        """Add features; an utterance for which that fails becomes an error line and is dropped, or ends the run."""
        found: list[Item] = []
        for position, utterance in items:
            try:
                if self.decodes and utterance.dialogue_id is not None and utterance.speaker is None:
                    raise UserError(f"utterance {utterance.id!r} has no speaker; the dialogue decoder needs one")
                if self.decodes and self.live is not None:
                    self.live.check_order(utterance)
                found.append((position, self.pipeline.with_features(utterance)))
            except UserError as error:
                if self.config.on_bad_input == "stop":
                    self._stop(position, error)
                    break
                self._write_error(position, utterance.id, str(error), digests)
        return found

    def _predict(self, group: list[Item], digests: dict[str, str]) -> list[Prediction]:
        """Predict a group; an utterance that cannot be answered becomes an error line and is dropped, or ends the run."""
        while group:
            utterances = [utterance for _, utterance in group]
            try:
                if self.live is not None:
                    return self.live(utterances[0])
                return self.pipeline.answer(utterances, self.config.tasks)
            except UserError as error:
                tasks = self.config.tasks
                errors_by_id = {
                    u.id: message for u in utterances if (message := find_input_error(self.pipeline, u, tasks)) is not None
                }
                if not errors_by_id:
                    raise error from None
                if self.config.on_bad_input == "stop":
                    first = next(i for i, utterance in enumerate(utterances) if utterance.id in errors_by_id)
                    self._stop(group[first][0], UserError(errors_by_id[utterances[first].id]))
                    del group[first:]
                    continue
                for position, utterance in group:
                    if utterance.id in errors_by_id:
                        self._write_error(position, utterance.id, errors_by_id[utterance.id], digests)
                group[:] = [item for item in group if item[1].id not in errors_by_id]
        return []

    def _write_answer(self, position: int, prediction: Prediction, digests: dict[str, str]) -> bool:
        """Write one answer; returns False if the run ends here."""
        entry = prediction.to_dict()
        if not prediction.is_finite:
            message = not_finite(prediction)
            if self.config.on_bad_input == "stop":
                self._stop(position, UserError(f"utterance {prediction.id!r}: {message}"))
                return False
            self._write_error(position, prediction.id, message, digests)
            return True
        entry = entry if self.config.full else shorten(entry)
        self._write(position, entry | ({INPUT: digests[prediction.id]} if digests else {}))
        if self.echo is not None:
            self.echo(prediction)
        return True

    def _write_error(self, position: int, name: str, message: str, digests: dict[str, str]) -> None:
        """Write a line with the error of an utterance, unless one is written already."""
        if name not in self.out.done:
            self._write(position, {"id": name, "error": message} | ({INPUT: digests[name]} if digests else {}))

    def _stop(self, position: int, error: UserError) -> None:
        """End the run at this position, after answering everything before it; immediately if dialogues are kept whole."""
        if self.whole_dialogues:
            raise error
        self.stopped = position, error

    def _write(self, position: int, entry: dict[str, Any]) -> None:
        if self.live is None:
            self.pending.append((position, entry))
        else:
            self.out.write(position, entry)

    def _write_pending(self, last: float) -> None:
        """Write pending lines up to position ``last`` in input order; lines lost in a kill are answered again later."""
        for position, entry in sorted((line for line in self.pending if line[0] <= last), key=lambda line: line[0]):
            self.out.write(position, entry)
        self.pending = [line for line in self.pending if line[0] > last]
        self.out.flush()

    def _warn_already_answered(self, utterance: Utterance) -> None:
        recorded_digest = self.out.done[utterance.id]
        changed = recorded_digest is not None and recorded_digest != input_digest(utterance)
        logger.warning(
            "%s is already answered in %s%s; give each line a unique id",
            utterance.id,
            self.config.output,
            ", from another input" if changed else "",
        )

    def _report_unused_labels(self, utterance: Utterance) -> None:
        new_labels = utterance.labels.keys() - self.targets - self.reported_labels
        if new_labels and self.processes.is_first:
            logger.info("labels %s belong to none of the requested tasks and are ignored", ", ".join(sorted(new_labels)))
        self.reported_labels |= new_labels
