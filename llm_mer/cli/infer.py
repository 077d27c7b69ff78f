"""``infer.py`` and ``llm-mer infer``: a clip, text, features, a manifest or standard input → JSONL."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.data.schema import Utterance
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.distributed.progress import track_progress, write_line
from llm_mer.errors import UserError
from llm_mer.inference.conversations import Conversations
from llm_mer.inference.inputs import InferConfig, inputs
from llm_mer.inference.inputs import InferConfig as Options
from llm_mer.inference.output_file import answer_file, shorten
from llm_mer.inference.prediction import Prediction, not_finite
from llm_mer.scoring.engines.base import read_options

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline

logger = logging.getLogger(__name__)
EXAMPLES = (
    'python infer.py --checkpoint runs/quickstart/egmf --text "I am so happy"',
    "python infer.py --checkpoint runs/quickstart/egmf --video clip.mp4 --text 我很高兴",
    "python infer.py --checkpoint runs/quickstart/egmf --manifest clips.jsonl --output answers.jsonl",
)
SYNC_EVERY_N_BATCHES = 16
"""Batches a process answers between two barriers, so that none waits for another longer than the job's own patience."""


def run(options: Options) -> None:
    """See :func:`infer`."""
    infer(options)


def readable(prediction: Prediction, diagnostics: Sequence[DiagnosticInfo] = ()) -> str:
    """``en-test-1  emotion  happy  p .93, then surprised .04 · truth happy``; a score shows its central 80 %.

    ``diagnostics`` that have a label stand in it too, e.g. ``expert weights 0.31 0.40 0.29``.
    """
    parts = [f"{prediction.id}  {prediction.task}"]
    if isinstance(prediction.value, str):
        ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
        parts.append(f"{prediction.value}  p {prediction.probabilities[prediction.value]:.2f}")
        second = next((pair for pair in ranked if pair[0] != prediction.value), None)
        if second is not None:
            parts[-1] += f", then {second[0]} {second[1]:.2f}"
    elif prediction.interval is not None:
        parts.append(f"{prediction.value:+.1f}  80 % within {prediction.interval[0]:+.1f} to {prediction.interval[1]:+.1f}")
    else:
        parts.append(f"{prediction.value:+.1f}")
    parts += [
        info.summary(prediction.diagnostics[info.name])
        for info in diagnostics
        if info.label and info.of_samples and info.name in prediction.diagnostics
    ]
    if prediction.truth is not None:
        truth = prediction.truth if isinstance(prediction.truth, str) else f"{prediction.truth:+.1f}"
        parts.append(f"truth {truth}")
    return "  ·  ".join(parts)


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
    from llm_mer.evaluation.dialogue import decode_dialogues

    known = {task.name: task for task in pipeline.tasks}
    decoded = list(predictions)
    for name, p_shift in pipeline.description.shift_probability.items():
        rows = [i for i, p in enumerate(predictions) if p.task == name]
        for i, prediction in zip(
            rows, decode_dialogues([predictions[i] for i in rows], known[name], p_shift, mode), strict=True
        ):
            decoded[i] = prediction
    return decoded


def infer(config: InferConfig) -> int:
    """Answer everything and write JSONL; returns the number of utterances answered.

    Under a launcher of several processes each answers its share of the groups (:class:`PartFiles`), and the file is that of
    one process. With ``--output``, an interrupted run goes on after the last whole line. An input that cannot be used
    becomes a line ``{"id": …, "error": …}`` unless ``--on_bad_input stop``.
    """
    for name in ("batch_size", "read_ahead"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: it must be at least 1")
    if config.output is not None and Path(config.output).is_dir():
        raise UserError(f"--output {config.output}: is a folder; name a file")
    processes = ProcessGroup.join()
    if processes.world_size > 1 and (config.output is None or config.stdin):
        raise UserError("several processes answer a --manifest into an --output file; run others by one")
    stream_in = inputs(config)
    first = next(stream_in, None)  # a wrong command line fails before a model is loaded
    if first is None:
        raise UserError("there is nothing to answer: the input is empty")
    if config.stdin and config.dialogue_decoder == "offline":
        raise UserError("--dialogue_decoder offline needs whole dialogues; with --stdin use online")
    from llm_mer.inference.pipeline import MerPipeline

    pipeline = MerPipeline.from_pretrained(
        config.checkpoint,
        backbone=config.backbone,
        adapter=config.adapter,
        device=config.device or processes.device,
        engine=config.engine,
        engine_options=read_options(config.engine_options),
        batch_size=config.batch_size,
        generate=config.generate,
        answer_end=config.answer_end,
    )
    pipeline.refuse_not_finite = False  # such an answer becomes a line of its own
    if config.dialogue_decoder != "none" and not pipeline.description.shift_probability:
        raise UserError(
            f"{config.checkpoint} was trained without dialogues and their speakers, so it has no p0 for --dialogue_decoder"
        )
    diagnostics = pipeline.predictor.adapter.diagnostic_info()
    asked = [task.name for task in pipeline.dataset([], config.tasks).tasks]
    decodes = config.dialogue_decoder != "none" and any(name in pipeline.description.shift_probability for name in asked)
    whole = pipeline.predictor.adapter.uses_context or config.dialogue_decoder != "none"
    live = Conversations(pipeline, config.tasks, config.dialogue_decoder == "online") if config.stdin else None
    answered = 0
    with (
        pipeline.predictor.evaluating(),
        answer_file(config.output, processes, len(asked)) as out,
        track_progress(description="infer", unit="utterance", hidden=config.output is None or not processes.is_first) as bar,
    ):
        held: list[tuple[int, dict[str, Any]]] = []
        stopped: list[tuple[int, UserError]] = []

        def write(place: int, entry: dict[str, Any]) -> None:
            if live is None:
                held.append((place, entry))
            else:
                out.write(place, entry)

        def settle(last: float) -> None:
            """Write what is held of the input up to ``last``, in its order; what a kill takes is answered again."""
            for place, entry in sorted((line for line in held if line[0] <= last), key=lambda line: line[0]):
                out.write(place, entry)
            held[:] = [line for line in held if line[0] > last]
            out.flush()

        def stop(place: int, error: UserError) -> None:
            """End at this place of the input, what stands before it answered; at once where dialogues are answered whole."""
            if whole:
                raise error
            stopped[:] = [(place, error)]

        def refuse(place: int, name: str, message: str) -> None:
            write(place, {"id": name, "error": message})

        def numbered() -> Iterator[Item]:
            """Utterances with their places; lines that cannot be used are reported by one of the processes."""
            for place, item in enumerate(chain([first], stream_in)):
                if not isinstance(item, tuple):
                    yield place, item
                elif item[0] not in out.done and place % processes.world_size == processes.rank:
                    refuse(place, *item)

        def ready(group: list[Item]) -> list[Item]:
            """The group with features; an utterance that has none becomes a line and leaves it, or ends it."""
            found: list[Item] = []
            for place, item in group:
                try:
                    if decodes and item.dialogue_id is not None and item.speaker is None:
                        raise UserError(f"utterance {item.id!r} has no speaker; the dialogue decoder needs one")
                    found.append((place, pipeline.with_features(item)))
                except UserError as error:
                    if config.on_bad_input == "stop":
                        stop(place, error)
                        break
                    if item.id not in out.done:
                        refuse(place, item.id, str(error))
            return found

        def answer(group: list[Item]) -> list[Prediction]:
            """Predictions of a group; an utterance that cannot be answered becomes a line and leaves it, or ends it."""
            while group:
                utterances = [utterance for _, utterance in group]
                try:
                    return live(utterances[0]) if live is not None else pipeline(utterances, config.tasks)
                except UserError as error:
                    bad = {u.id: message for u in utterances if (message := refusal(pipeline, u, config.tasks)) is not None}
                    if not bad:
                        raise error from None
                    if config.on_bad_input == "stop":
                        first_bad = next(i for i, utterance in enumerate(utterances) if utterance.id in bad)
                        stop(group[first_bad][0], UserError(bad[utterances[first_bad].id]))
                        del group[first_bad:]
                        continue
                    for place, utterance in group:
                        if utterance.id in bad and utterance.id not in out.done:
                            refuse(place, utterance.id, bad[utterance.id])
                    group[:] = [item for item in group if item[1].id not in bad]
            return []

        size = 1 if live else config.batch_size * config.read_ahead
        for turn, given in enumerate(batches(numbered(), size, whole and live is None)):
            if turn % (SYNC_EVERY_N_BATCHES * processes.world_size) == 0:
                processes.gather(None)  # none waits for another longer than the job's own patience
            # The groups are those of one process, and one that an interrupted run tore is answered whole again, so that
            # every number is the same however many processes there are and wherever they were stopped.
            if turn % processes.world_size != processes.rank or all(utterance.id in out.done for _, utterance in given):
                if live is not None:
                    logger.warning(
                        "%s is answered already in %s; give each line an id of its own", given[0][1].id, config.output
                    )
                continue
            group = ready(given)
            predictions = answer(group)
            if live is None and config.dialogue_decoder != "none":
                predictions = decode_groups(pipeline, predictions, config.dialogue_decoder)
            # All answers of an utterance are written together, so a resumed run never lacks one of them.
            places = {utterance.id: place for place, utterance in group}
            for prediction in sorted(predictions, key=lambda p: places[p.id]):
                if prediction.id in out.done:
                    continue
                entry = prediction.to_dict()
                if not prediction.is_finite:
                    message = not_finite(prediction)
                    if config.on_bad_input == "stop":
                        stop(places[prediction.id], UserError(f"utterance {prediction.id!r}: {message}"))
                        break
                    refuse(places[prediction.id], prediction.id, message)
                    continue
                write(places[prediction.id], entry if config.full else shorten(entry))
                if config.echo and config.output is not None:
                    write_line(readable(prediction, diagnostics))
            settle(stopped[0][0] - 1 if stopped else given[-1][0])
            if stopped:
                raise stopped[0][1]
            new = sum(utterance.id not in out.done for _, utterance in group)
            answered += new
            bar.update(new * processes.world_size)
        settle(float("inf"))
    return sum(processes.gather(answered))
