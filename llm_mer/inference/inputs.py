"""The inputs of inference: one clip, features, a manifest, or lines of standard input, as utterances."""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm_mer.checkpoints.precision import precision_option
from llm_mer.data.long_clips import long_clips_option, window_overlap_option, windows_option
from llm_mer.data.missing_values import check_values
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.column_names import ColumnNames
from llm_mer.data.sources.manifest import FIELDS, has_lone_surrogate, json_entries, stream_manifest, utterance_from_entry
from llm_mer.errors import UserError
from llm_mer.features.media import audio_source, media_tracks
from llm_mer.prompting.languages import LANGUAGES
from llm_mer.scoring.engines.base import ENGINES
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.quoting import quote

MAX_FEATURE_BYTES = 1 << 30
"""Of the arrays in an ``.npz``, unpacked."""


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
    manifest: str | None = field(
        default=None, metadata={"help": "JSONL or CSV manifest of utterances, or a table like the one that was trained on"}
    )
    stdin: bool = field(
        default=False, metadata={"help": "read manifest lines (JSONL) from standard input, answer as they come"}
    )
    output: str | None = field(
        default=None, metadata={"help": "JSONL file (default: standard output); an existing one is continued"}
    )
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "further columns of the manifest that are targets of your own tasks"},
    )
    speaker_data: str | None = field(
        default=None,
        metadata={
            "help": "a store or FORMAT:PATH with earlier utterances of the speakers, for a checkpoint that normalises "
            "features by speaker; without it each utterance alone tells of its speaker"
        },
    )
    batch_size: int = field(default=16, metadata={"help": "utterances answered together"})
    read_ahead: int = field(
        default=4,
        metadata={"help": "batches read ahead, so that utterances of about equal length are answered together"},
    )
    answer_end: bool = field(
        default=True,
        metadata={"help": "score the end of an answer too; false is faster, where no answer begins another"},
    )
    calibration: bool = field(
        default=True, metadata={"help": "use what `llm-mer calibrate` left in the checkpoint, where it did"}
    )
    windows: float | None = windows_option()
    window_overlap: float = window_overlap_option()
    long_clips: str = long_clips_option()
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
    answer: str = field(
        default="scored",
        metadata={
            "help": "what answers: the scored answers; the read-out of a checkpoint that has one; or pooled, these and the "
            "adapter's own head by the weights of `llm-mer calibrate`",
            "choices": ["scored", "read_out", "pooled"],
        },
    )
    generate: bool = field(default=False, metadata={"help": "also generate freely and say whether it could be parsed"})
    echo: bool = field(default=False, metadata={"help": "with --output: also show each answer as a readable line"})
    full: bool = field(default=False, metadata={"help": "print every probability, log-probability and diagnostic"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone instead of the recorded one"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, … (default: the accelerator if there is one)"})
    dtype: str = precision_option()
    engine: str = field(default="transformers", metadata={"help": "what runs the language model", "choices": list(ENGINES)})
    engine_options: list[str] | None = field(
        default=None, metadata={"help": "NAME=VALUE …: further arguments of vLLM's LLM, e.g. tensor_parallel_size=2"}
    )


def _check_archive(path: str, where: str) -> None:
    """Raises :class:`UserError` where the arrays of an archive are larger than is read, or than what it holds of them.

    numpy takes the memory that an array's head announces before it reads the array, and unpacks whatever is packed.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_FEATURE_BYTES:
            raise UserError(f"{where}: {unpacked} bytes when unpacked; at most {MAX_FEATURE_BYTES} are read")
        for member in members:
            with archive.open(member) as stream:
                if np.lib.format.read_magic(stream) == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
            if math.prod(shape) * dtype.itemsize > member.file_size:
                announced = f"an array of shape {quote(shape)} in {member.file_size} bytes"
                raise UserError(f"{where}: {quote(member.filename)} announces {announced}")


def read_features(path: str) -> dict[str, np.ndarray]:
    """The float32 arrays of an ``.npz``, by modality.

    Raises:
        UserError: another kind of file, other names, or an array that is not of finite ``(steps, size)`` numbers.
    """
    where = f"--features {path}"
    found: dict[str, np.ndarray] = {}
    try:
        _check_archive(path, where)
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
    if config.text is not None and has_lone_surrogate(config.text):
        raise UserError(f"--text {config.text!r} is not valid Unicode: it contains a lone surrogate")
    name = next((Path(p).stem for p in (config.video, config.audio, config.features) if p is not None), "text")
    return Utterance(
        id=name.encode(errors="replace").decode(),  # a file name need not be valid Unicode, a line of output must
        split="test",
        language=config.language or "",
        text=config.text,
        audio=config.audio or (audio_source(config.video) if config.video is not None else None),
        vision=config.video,
        **found,
    )


def known_columns(checkpoint: Path) -> ColumnNames | None:
    """What the columns of the table mean that ``llm-mer train --manifest`` made a checkpoint from; None for any other.

    None where there is no readable description, too; loading the checkpoint says what is wrong with it.
    """
    try:
        description = read_json_object(checkpoint / "llm_mer.json")
        columns = (description.get("data") or {}).get("columns")
        return None if columns is None else ColumnNames.from_dict(columns, media_tracks)
    except (UserError, KeyError, TypeError, AttributeError):
        return None


def known_labels(checkpoint: Path) -> list[str]:
    """Names of the labels that a checkpoint's training data had and its tasks have as targets, beyond the built-in ones.

    Empty where there is no readable description; loading the checkpoint says what is wrong with it.
    """
    try:
        description = read_json_object(checkpoint / "llm_mer.json")
        tasks = description["processor"]["tasks"].values()
        names = [*(description.get("data") or {}).get("labels", []), *(task["target"] for task in tasks)]
    except (UserError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in dict.fromkeys(names) if isinstance(name, str) and name not in FIELDS]


def check_one_input(config: InferConfig) -> str:
    """Which input was given: ``clip``, ``manifest`` or ``stdin``. Raises :class:`UserError` for none, or more than one."""
    clip = any(getattr(config, n) is not None for n in ("video", "audio", "text", "features"))
    inputs_given = (("a clip", clip), ("--manifest", config.manifest is not None), ("--stdin", config.stdin))
    given = [name for name, there in inputs_given if there]
    if len(given) != 1:
        raise UserError(
            "give one input: --video, --audio, --text or --features; --manifest; or --stdin "
            f"(found {', '.join(given) or 'none'})"
        )
    if config.features is not None and (config.video is not None or config.audio is not None):
        raise UserError(
            "--features takes the place of --video and --audio; leave them out, or leave it out to have them read"
        )
    return given[0].removeprefix("a ").removeprefix("--")


def inputs(
    config: InferConfig, labels: Sequence[str] = (), columns: ColumnNames | None = None
) -> Iterator[Utterance | tuple[str, str]]:
    """Utterances of whichever input was given; ``(id, message)`` for a line that cannot be used.

    Args:
        labels: fields that may stand in a line beside the built-in ones (:func:`known_labels`).
        columns: what a manifest's columns mean (:func:`known_columns`).

    Raises:
        UserError: no input, or more than one.
    """
    kind = check_one_input(config)
    extra = (*labels, *(config.labels or ()))
    if kind == "clip":
        yield single_utterance(config)
    elif kind == "manifest":
        yield from _manifest_lines(str(config.manifest), config.on_bad_input == "stop", extra, columns)
    else:
        yield from _stream_lines(config.on_bad_input == "stop", extra)


def _manifest_lines(
    manifest: str, stop: bool, labels: Sequence[str], columns: ColumnNames | None
) -> Iterator[Utterance | tuple[str, str]]:
    if stop:
        for _ in stream_manifest(
            manifest, labels, columns=columns
        ):  # a wrong line ends the command before anything is answered
            pass
    refused: list[tuple[str, str]] = []
    try:
        for utterance in stream_manifest(manifest, labels, refused, columns):
            yield from refused
            refused.clear()
            yield utterance
    except UserError as error:
        if not refused or str(error) != refused[0][1]:  # else: no line can be used, and each says why
            raise
    yield from refused


def _stream_lines(stop: bool, labels: Sequence[str]) -> Iterator[Utterance | tuple[str, str]]:
    for where, given in json_entries(_standard_input(), "standard input"):
        try:
            if isinstance(given, UserError):
                raise given
            given.setdefault("id", f"line-{where.rpartition(':')[2]}")
            yield utterance_from_entry(given, where, Path(), labels)
        except UserError as error:
            if stop:
                raise
            yield where, str(error)


def _standard_input() -> BinaryIO:
    """The bytes of standard input: one line that is not UTF-8 is an error of its own."""
    stream = sys.stdin
    return stream.buffer if hasattr(stream, "buffer") else io.BytesIO(stream.read().encode("utf-8", "surrogatepass"))
