"""``infer.py``: a clip, text, features, a manifest or standard input → JSONL."""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import os
import shutil
import sys
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from llm_mer.data.schema import LANGUAGES, Utterance
from llm_mer.data.sources.manifest import (
    guess_language,
    is_broken,
    parse_json_line,
    stream_manifest,
    utterance_from_entry,
)
from llm_mer.data.store import check_values
from llm_mer.decoding.dialogue import OnlineDialogueDecoder
from llm_mer.engines import ENGINES, read_options
from llm_mer.errors import UserError
from llm_mer.features.media import sound_of
from llm_mer.prediction import Prediction
from llm_mer.processes import Processes

if TYPE_CHECKING:
    from llm_mer.inference import MerPipeline

PROBABILITY_FLOOR = 0.0005
"""Probabilities below this are left out of a score's printed distribution; they stay in ``--full`` output."""
logger = logging.getLogger(__name__)

CONVERSATIONS_KEPT = 256
"""Dialogues of a stream whose last utterances and beams are kept, the most recent ones."""

MEETING = 16
"""Groups a process answers between two meetings with the others."""


@dataclass
class InferConfig:
    """Options of ``infer.py``. Give one input: a clip (any of video, audio, text), features, a manifest, or ``--stdin``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True})
    video: str | None = field(default=None, metadata={"help": "video file; its sound is used too unless --audio is given"})
    audio: str | None = field(default=None, metadata={"help": "sound file"})
    text: str | None = field(default=None, metadata={"help": "transcript"})
    language: str | None = field(
        default=None, metadata={"help": "en or zh (default: from the transcript)", "choices": list(LANGUAGES)}
    )
    features: str | None = field(
        default=None, metadata={"help": ".npz with any of text, audio, vision, each (steps, size), instead of media"}
    )
    manifest: str | None = field(default=None, metadata={"help": "JSONL or CSV manifest of utterances"})
    stdin: bool = field(
        default=False, metadata={"help": "read manifest lines (JSONL) from standard input, answer as they come"}
    )
    output: str | None = field(
        default=None, metadata={"help": "JSONL file (default: standard output); an existing one is continued"}
    )
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    batch_size: int = field(default=16, metadata={"help": "utterances answered together"})
    read_ahead: int = field(
        default=4,
        metadata={"help": "batches read ahead, so that utterances of about equal length are answered together"},
    )
    answer_end: bool = field(
        default=True,
        metadata={"help": "score the end of an answer too; false is faster, where no answer begins another"},
    )
    on_bad_input: str = field(
        default="report",
        metadata={"help": "an input that cannot be used: a line with its error, or stop", "choices": ["report", "stop"]},
    )
    dialogue_decoder: str = field(
        default="none",
        metadata={
            "help": "decode whole dialogues of a manifest, or utterance by utterance",
            "choices": ["none", "offline", "online"],
        },
    )
    generate: bool = field(default=False, metadata={"help": "also generate freely and say whether it could be parsed"})
    echo: bool = field(default=False, metadata={"help": "with --output: also show each answer as a readable line"})
    full: bool = field(default=False, metadata={"help": "print every probability, log-probability and diagnostic"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone folder instead of the recorded one"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: the accelerator if there is one)"})
    engine: str = field(default="transformers", metadata={"help": "what runs the language model", "choices": list(ENGINES)})
    engine_options: list[str] | None = field(
        default=None, metadata={"help": "NAME=VALUE …: further arguments of vLLM's LLM, e.g. tensor_parallel_size=2"}
    )


def read_features(path: str) -> dict[str, np.ndarray]:
    """The float32 arrays of an ``.npz``, by modality.

    Raises:
        UserError: another kind of file, other names, or an array that is not of finite ``(steps, size)`` numbers.
    """
    where = f"--features {path}"
    found: dict[str, np.ndarray] = {}
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{where}: holds one array; it must be an .npz with any of text, audio, vision")
        with stored:
            unknown = sorted(set(stored.files) - {"text", "audio", "vision"})
            if unknown or not stored.files:
                raise UserError(f"{where}: holds {unknown or 'nothing'}; it may hold text, audio, vision")
            for name in stored.files:
                values = stored[name]
                real = np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)
                if values.ndim != 2 or not real:
                    raise UserError(
                        f"{where}: {name} has shape {values.shape} and kind {values.dtype}; "
                        "it must be (steps, size) of real numbers"
                    )
                check_values(values, f"{where}: {name}")
                found[name] = values.astype(np.float32)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # text, objects, a cut-off archive
        raise UserError(f"{where}: not an .npz of numeric arrays: {error}") from None
    return found


def single_utterance(config: InferConfig) -> Utterance:
    """The utterance the clip options describe.

    The sound of a clip without a sound track is missing, unless a sound file was given.

    Raises:
        UserError: a file that is not there, a transcript that is not valid Unicode, or features that are not finite
            ``(steps, size)`` arrays.
    """
    for name in ("video", "audio", "features"):
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise UserError(f"--{name} {path}: no such file")
    found: dict[str, Any] = {}
    if config.features is not None:
        found = {f"{name}_features": values for name, values in read_features(config.features).items()}
    if config.text is not None and is_broken(config.text):
        raise UserError(f"--text {config.text!r} is not valid Unicode: it holds half a surrogate pair")
    name = next((Path(p).stem for p in (config.video, config.audio, config.features) if p is not None), "text")
    return Utterance(
        id=name.encode(errors="replace").decode(),  # a file name need not be valid Unicode, a line of output must
        split="test",
        language=config.language or guess_language(config.text),
        text=config.text,
        audio=config.audio or (sound_of(config.video) if config.video is not None else None),
        vision=config.video,
        **found,
    )


def inputs(config: InferConfig) -> Iterator[Utterance | tuple[str, str]]:
    """Utterances of whichever input was given; ``(id, message)`` for a line that cannot be used.

    Raises:
        UserError: no input, or more than one.
    """
    clip = any(getattr(config, n) is not None for n in ("video", "audio", "text", "features"))
    given = [name for name, there in (("a clip", clip), ("--manifest", config.manifest), ("--stdin", config.stdin)) if there]
    if len(given) != 1:
        raise UserError(
            "give one input: --video, --audio, --text or --features; --manifest; or --stdin "
            f"(found {', '.join(given) or 'none'})"
        )
    if clip:
        yield single_utterance(config)
    elif config.manifest is not None:
        if config.on_bad_input == "stop":
            for _ in stream_manifest(config.manifest):  # a wrong line ends the command before anything is answered
                pass
        refused: list[tuple[str, str]] = []
        for utterance in stream_manifest(config.manifest, refused=refused):
            yield from refused
            refused.clear()
            yield utterance
        yield from refused
    else:
        for number, line in enumerate(_standard_input(), 1):
            if not line.strip():
                continue
            where = f"standard input:{number}"
            try:
                entry = parse_json_line(line, where)
                entry.setdefault("id", f"line-{number}")
                yield utterance_from_entry(entry, where, Path())
            except UserError as error:
                if config.on_bad_input == "stop":
                    raise
                yield where, str(error)


def _standard_input() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8 text: {error}") from None


def finished_ids(path: Path, answers: int = 1, numbered: bool = False) -> set[str]:
    """Ids an interrupted run has already answered.

    A last line that broke off is cut away, and with it the last utterance when it has fewer than ``answers`` lines.
    ``numbered``: the lines are those of a :class:`PartFiles`, which begin with their place in the input.

    Raises:
        UserError: a line that ``infer.py`` did not write.
    """
    if not path.is_file():
        return set()
    found: list[str] = []
    begins: dict[str, int] = {}
    failed: set[str] = set()
    kept = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line.partition(b"\t")[2] if numbered else line)
                name = str(entry["id"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a line of infer.py; name another --output") from None
            if "error" in entry:
                failed.add(name)
            begins.setdefault(name, kept)
            found.append(name)
            kept += len(line)
    if found and found[-1] not in failed and found.count(found[-1]) < answers:
        kept = begins[found[-1]]
        found = [name for name in found if name != found[-1]]
    with path.open("rb+") as stream:
        stream.truncate(kept)
    return set(found)


@contextmanager
def opened(output: str | Path | None) -> Iterator[IO[str]]:
    """The output file for appending, or standard output."""
    if output is None:
        yield sys.stdout
        return
    with ExitStack() as stack:
        try:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(Path(output).open("a", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
        yield stream


@dataclass
class PartFiles:
    """``OUTPUT.part-N`` beside ``OUTPUT``: what process N of a job has answered, each line after its place in the input.

    Any number of processes goes on from any parts: what one of them holds is done. When all is answered the first process
    puts the lines in the order of the input behind what ``OUTPUT`` held, in one move, and removes the parts.
    """

    output: Path

    def part(self, rank: int) -> Path:
        """The file of one process."""
        return self.output.with_name(f"{self.output.name}.part-{rank}")

    def found(self) -> list[Path]:
        """The parts there are."""
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.part-[0-9]*"))

    def merge(self) -> None:
        """Parts to ``OUTPUT``. Holds 24 bytes a line; a line whose id ``OUTPUT`` has already, from a merge that was cut
        off before the parts were removed, is left out."""
        parts = self.found()
        if not parts:
            return
        before = finished_ids(self.output)
        places, files, offsets = array("q"), array("q"), array("q")
        for number, part in enumerate(parts):
            offset = 0
            with part.open("rb") as stream:
                for line in stream:
                    place, _, content = line.partition(b"\t")
                    if not before or str(json.loads(content)["id"]) not in before:
                        places.append(int(place))
                        files.append(number)
                        offsets.append(offset)
                    offset += len(line)
        order = np.argsort(np.asarray(places, dtype=np.int64), kind="stable")
        scratch = self.output.with_name(f".{self.output.name}.merging")
        with ExitStack() as stack:
            streams = [stack.enter_context(part.open("rb")) for part in parts]
            out = stack.enter_context(scratch.open("wb"))
            if self.output.is_file():
                with self.output.open("rb") as kept:
                    shutil.copyfileobj(kept, out)
            for index in order:
                streams[files[index]].seek(offsets[index])
                out.write(streams[files[index]].readline().partition(b"\t")[2])
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(self.output)
        for part in parts:
            part.unlink()


@dataclass
class AnswerFile:
    """Where one process writes, and the ids that need no answer any more."""

    stream: IO[str]
    done: set[str]
    numbered: bool

    def write(self, place: int, entry: dict[str, Any]) -> None:
        """One line about the utterance at ``place`` of the input."""
        number = f"{place}\t" if self.numbered else ""
        self.stream.write(number + json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Hand the lines to the system, so that they outlive this process."""
        self.stream.flush()


@contextmanager
def answer_file(output: str | None, processes: Processes, answers: int) -> Iterator[AnswerFile]:
    """``--output`` itself for one process; a part of it for each of several, put together at the end. Collective."""
    if output is None:
        yield AnswerFile(sys.stdout, set(), False)
        return
    files = PartFiles(Path(output))
    done: set[str] = set()
    for turn in range(2):  # the first process cuts off what broke, then the others read
        if processes.first == (turn == 0):
            done = finished_ids(files.output, answers)
            for part in files.found():
                done |= finished_ids(part, answers, numbered=True)
        processes.gather(None)
    parted = processes.world > 1 or bool(files.found())
    with opened(files.part(processes.rank) if parted else output) as stream:
        yield AnswerFile(stream, done, parted)
    processes.gather(None)
    if parted and processes.first:
        files.merge()


def shorten(entry: dict[str, Any]) -> dict[str, Any]:
    """A prediction's line without what is seldom read: log-probabilities, and probabilities that are nearly zero."""
    entry = dict(entry)
    entry.pop("log_probabilities", None)
    if "probabilities" in entry and "interval" in entry:
        entry["probabilities"] = {k: v for k, v in entry["probabilities"].items() if v >= PROBABILITY_FLOOR}
    return entry


def readable(prediction: Prediction) -> str:
    """``en-test-1  emotion  happy  p .93, then surprised .04 · truth happy``; a score shows its central 80 %."""
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
    weights = prediction.diagnostics.get("expert_weights")
    if weights is not None:
        parts.append("expert weights " + " ".join(f"{w:.2f}" for w in weights))
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
        """The answers about this utterance."""
        if utterance.dialogue_id is None:
            return self.pipeline([utterance], self.tasks)
        place = (utterance.language, utterance.dialogue_id)
        conversation = self.kept.get(place, Conversation())
        window = [*conversation.earlier, utterance]
        predictions = self.pipeline(window, self.tasks, last_only=True)
        if self.decode:
            predictions = [self._decoded(p, conversation) for p in predictions]
        conversation.earlier = window[-self.window :]
        self.kept.pop(place, None)
        self.kept[place] = conversation
        if len(self.kept) > CONVERSATIONS_KEPT:
            del self.kept[next(iter(self.kept))]
        return predictions

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
    from llm_mer.evaluation.evaluate import decode_dialogues

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
    processes = Processes.join()
    if processes.world > 1 and (config.output is None or config.stdin):
        raise UserError("several processes answer a --manifest into an --output file; run others by one")
    stream_in = inputs(config)
    first = next(stream_in, None)  # a wrong command line fails before a model is loaded
    if first is None:
        raise UserError("there is nothing to answer: the input is empty")
    if config.stdin and config.dialogue_decoder == "offline":
        raise UserError("--dialogue_decoder offline needs whole dialogues; with --stdin use online")
    from llm_mer.inference import MerPipeline

    pipeline = MerPipeline.from_checkpoint(
        config.checkpoint,
        backbone=config.backbone,
        device=config.device or processes.device,
        engine=config.engine,
        engine_options=read_options(config.engine_options),
        batch_size=config.batch_size,
        generate=config.generate,
        answer_end=config.answer_end,
    )
    if config.dialogue_decoder != "none" and not pipeline.description.shift_probability:
        raise UserError(
            f"{config.checkpoint} was trained without dialogues and their speakers, so it has no p0 for --dialogue_decoder"
        )
    asked = [task.name for task in pipeline.dataset([], config.tasks).tasks]
    decodes = config.dialogue_decoder != "none" and any(name in pipeline.description.shift_probability for name in asked)
    whole = pipeline.predictor.use_context or config.dialogue_decoder != "none"
    live = Conversations(pipeline, config.tasks, config.dialogue_decoder == "online") if config.stdin else None
    answered = 0
    with (
        pipeline.predictor.evaluating(),
        answer_file(config.output, processes, len(asked)) as out,
        tqdm(desc="infer", unit="utterance", disable=config.output is None or not processes.first) as bar,
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
                elif item[0] not in out.done and place % processes.world == processes.rank:
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
            if turn % (MEETING * processes.world) == 0:
                processes.gather(None)  # none waits for another longer than the job's own patience
            # The groups are those of one process, and one that an interrupted run tore is answered whole again, so that
            # every number is the same however many processes there are and wherever they were stopped.
            if turn % processes.world != processes.rank or all(utterance.id in out.done for _, utterance in given):
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
                try:
                    json.dumps(entry, allow_nan=False)  # all of it: shortening would hide a distribution of NaN
                except ValueError:
                    message = (
                        f"task {prediction.task!r}: the answer holds NaN or infinity; the model overflows or is damaged"
                    )
                    if config.on_bad_input == "stop":
                        stop(places[prediction.id], UserError(f"utterance {prediction.id!r}: {message}"))
                        break
                    refuse(places[prediction.id], prediction.id, message)
                    continue
                write(places[prediction.id], entry if config.full else shorten(entry))
                if config.echo and config.output is not None:
                    tqdm.write(readable(prediction))
            settle(stopped[0][0] - 1 if stopped else given[-1][0])
            if stopped:
                raise stopped[0][1]
            new = sum(utterance.id not in out.done for _, utterance in group)
            answered += new
            bar.update(new * processes.world)
        settle(float("inf"))
    return sum(processes.gather(answered))
