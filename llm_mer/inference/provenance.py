"""What made a file of answers: the checkpoint and the options in a file beside it, the input in each row.

``OUTPUT.made_by.json`` holds what is the same for every row. A row's ``input`` is a digest of the utterance it is about, so
that the same id with another text, or another recording under the same name, is not taken for one that has been answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mer.checkpoints.integrity import checkpoint_fingerprint
from llm_mer.checkpoints.run_differences import compare_settings
from llm_mer.data.long_clips import OPTION_DEFAULTS
from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.quoting import quote

DIGEST_LENGTH = 16
ANSWERING_OPTIONS = ("dialogue_decoder", "generate", "answer_end", "answer", "full", "engine")
"""Options that change what stands in a row; batch sizes and the number of processes do not."""


def input_digest(utterance: Utterance) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over everything an utterance says, its features included.

    A media file enters by name, size and time of its last change, not by its content: a run that goes on asks this of every
    utterance that is answered already.
    """
    digest = hashlib.sha256()
    for field in dataclasses.fields(utterance):
        value: Any = getattr(utterance, field.name)
        if field.name in ("audio", "vision") and value is not None:
            value = [Path(value).name, *_size_and_time(Path(value))]
        if isinstance(value, np.ndarray):
            digest.update(f"{field.name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        # Nobody asks a row which part of a data set it belonged to, and flags are found in media that are here by name.
        elif field.name not in ("split", "flags"):
            digest.update(f"{field.name} {json.dumps(value, sort_keys=True)}\n".encode())
    return digest.hexdigest()[:DIGEST_LENGTH]


def _size_and_time(path: Path) -> list[int | None]:
    try:
        status = path.stat()
    except OSError:  # the row says that it cannot be read
        return [None, None]
    return [status.st_size, status.st_mtime_ns]


@dataclass
class Provenance:
    """What made the rows of an output file: ``settings`` as plain values, the checkpoint's digest among them."""

    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        config: InferConfig,
        checkpoint: Path,
        tasks: Sequence[str],
        precision: str | None,
        speaker_data: str | None = None,
    ) -> Provenance:
        """That of a run with these options.

        Args:
            tasks: those it asks. precision: what ``--dtype`` came to here. speaker_data: fingerprint of ``--speaker_data``.
        """
        options = {name: getattr(config, name) for name in ANSWERING_OPTIONS}
        if not config.calibration:  # with it, its file is part of the checkpoint's digest
            options["calibration"] = False
        for name, default in OPTION_DEFAULTS.items():  # noted where they are others, as files before them have none
            if getattr(config, name) != default:
                options[name] = getattr(config, name)
        if speaker_data is not None:
            options["speaker_data"] = speaker_data
        return cls(
            {"checkpoint": checkpoint_fingerprint(checkpoint), "tasks": list(tasks), "precision": precision, **options}
        )

    @staticmethod
    def path(output: Path) -> Path:
        """The file beside an output file."""
        return output.with_name(f"{output.name}.made_by.json")

    def claim(self, output: Path, answered: bool) -> None:
        """Note what makes the rows of ``output``; where it has some (``answered``), they must be of the same making.

        Raises:
            UserError: rows of another checkpoint or other options, with both values, or of unknown making.
        """
        path, again = self.path(output), "name another --output, or delete the file to begin again"
        if not answered:
            write_json_atomically(path, {"settings": self.settings})
            return
        missing = f"{output} has answers, and no {path.name} beside it says what made them; {again}"
        before = read_json_object(path, missing).get("settings")
        if not isinstance(before, dict):
            raise UserError(f"{path}: damaged, it has no settings; {again}")
        differences = compare_settings(before, self.settings)
        if differences:
            shown = "; ".join(f"{d.name} was {_short(d.before)}, now {_short(d.now)}" for d in differences)
            raise UserError(f"{output} holds answers made otherwise: {shown}; {again}")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else quote(value)


def check_answered(output: str, done: dict[str, str | None], utterances: Iterable[Utterance | tuple[str, str]]) -> None:
    """Compare the inputs of a run that goes on with those that were answered; an id that is only now there is no matter.

    Raises:
        UserError: naming the first id whose text, media or labels are others than those answered.
    """
    for item in utterances:
        if isinstance(item, Utterance) and (before := done.get(item.id)) is not None and before != input_digest(item):
            raise UserError(
                f"{output} has the answer to another input for id {quote(item.id)}: its text, media, labels or place in a "
                "dialogue has changed since; name another --output, or delete the file to begin again"
            )
