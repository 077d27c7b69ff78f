"""Whether the files of a checkpoint are those that were written: size and SHA-256 of each, checked when it is loaded.

A training and a merge write :data:`CHECKSUMS_FILE` beside the final weights; ``checkpoint-N`` has its completion marker of
the same form, and ``run_manifest.json`` the digest of the trained weights. A checkpoint without a record, as one of an
earlier version, is read with a warning. The backbone has a fingerprint of its own
(:mod:`~llm_mer.checkpoints.backbone_reference`).

The weights are read once for all of it: what the run's manifest says of their tensors is compared with what the checksums
say of the very file whose own digest was found right, and :func:`checkpoint_fingerprint` is made of the files' digests.
"""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest, weights_digest, weights_file
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.fingerprints import file_sha256, files_sha256, json_sha256
from llm_mer.storage.json_files import read_json_object

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
CALIBRATION_FILE = "calibration.json"
"""Temperatures of the answers (:mod:`~llm_mer.checkpoints.calibration`)."""
COMPLETION_MARKER = "complete.json"
"""Written last into ``checkpoint-N``, over each of its files."""
TENSORS = "tensors_sha256"
"""Digest of the weights' tensors (:func:`weights_digest`), in the entry of their file."""
ANSWERING_FILES: tuple[str, ...] = (
    "llm_mer.json",
    CALIBRATION_FILE,
    "*.safetensors",
    "adapter_config.json",
    "tokenizer*",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.model",
)
"""What answers come from, apart from the backbone. The rest, such as an optimizer's state, may be deleted."""
READ_ELSEWHERE: tuple[str, ...] = ("config.json", "generation_config.json")
"""What transformers' ``AutoConfig`` and ``AutoModel`` read of a checkpoint; llm_mer itself reads ``llm_mer.json``."""
READ_WHERE_THERE: tuple[str, ...] = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "adapter_config.json",
    "generation_config.json",
)
"""Files that libraries read where they lie in a checkpoint: one that was not written with it changes what it computes."""


def answering_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that its answers come from, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _answers(path.name))


def _answers(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in ANSWERING_FILES)


def _decides(name: str) -> bool:
    """Whether a file decides what a checkpoint computes, here or in another program."""
    return _answers(name) or name in READ_ELSEWHERE


def write_checksums(folder: Path, without: str | None = None) -> None:
    """Write :data:`CHECKSUMS_FILE` over the files that decide what a checkpoint computes, except the one of this name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and _decides(path.name) and path.name != without)
    files: dict[str, dict[str, Any]] = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in paths
    }
    if (weights := weights_file(folder)) is not None and weights.name in files:
        files[weights.name][TENSORS] = weights_digest(folder)
    write_json_atomically(folder / CHECKSUMS_FILE, {"files": files})


def known_weights_digest(folder: Path) -> str | None:
    """:func:`weights_digest`, taken from the checksums where they have it and the file is the one they were written of."""
    path, record = weights_file(folder), folder / CHECKSUMS_FILE
    if path is not None and record.is_file():
        files = read_json_object(record).get("files")
        entry = files.get(path.name) if isinstance(files, dict) else None
        if isinstance(entry, dict) and TENSORS in entry and entry.get("sha256") == file_sha256(path):
            return str(entry[TENSORS])
    return weights_digest(folder)


def verify_checkpoint(folder: Path) -> None:
    """Compare the files that decide what a checkpoint computes with every digest that it records.

    Raises:
        UserError: naming the file that is missing, is not the one written, with both digests, or was added since.
    """
    records = [record for record in (CHECKSUMS_FILE, COMPLETION_MARKER) if (folder / record).is_file()]
    for record in records:
        _verify_record(folder, record)
    if not records:
        logger.warning(
            "%s is not there, so that changed or damaged files of this checkpoint may not be noticed; an earlier version "
            "wrote none, and `llm-mer info --path %s --write_checksums` records the files as they are now",
            folder / CHECKSUMS_FILE,
            folder,
        )
    if not (folder / MANIFEST).is_file():
        return
    manifest, path = RunManifest.load(folder), weights_file(folder)
    if not manifest.complete or manifest.weights_sha256 is None:
        return
    if path is None:
        raise UserError(f"{folder}: its weights are missing; {MANIFEST} records their SHA-256")
    found = known_weights_digest(folder)
    if found != manifest.weights_sha256:
        raise UserError(f"{path}: {_differ(found, manifest.weights_sha256)} by the run that {MANIFEST} describes")


def _verify_record(folder: Path, record: str) -> None:
    try:
        files: dict[str, Any] = read_json_object(folder / record)["files"]
        recorded = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items() if _decides(name)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / record}: damaged or edited: {error!r}") from None
    for name in READ_WHERE_THERE:
        if name not in recorded and (folder / name).is_file():
            raise UserError(
                f"{folder / name}: it was not written with the checkpoint, and would change what it computes; move it away"
            )
    for name, (size, digest) in recorded.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: the file is missing; it was written with the checkpoint")
        if path.stat().st_size != size:
            raise UserError(f"{path}: damaged or edited: it has {path.stat().st_size} bytes, {size} were written")
        if (found := file_sha256(path)) != digest:
            raise UserError(f"{path}: damaged or edited: {_differ(found, digest)}")


def _differ(found: str | None, written: str) -> str:
    return f"it has SHA-256 {str(found)[:12]}…, {written[:12]}… was written"


def checkpoint_fingerprint(folder: Path | str) -> str:
    """SHA-256 over names and digests of the files that a checkpoint's answers come from; the backbone by its description."""
    return json_sha256([[path.name, file_sha256(path)] for path in answering_files(Path(folder))])


def is_fingerprint_of(fingerprint: str, folder: Path) -> bool:
    """Whether it is the checkpoint's, or what versions before called so: a digest over the files' contents themselves."""
    return fingerprint in (checkpoint_fingerprint(folder), files_sha256(answering_files(folder)))
