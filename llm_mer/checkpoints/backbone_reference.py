"""Where a checkpoint's frozen backbone is, and whether it is the one that was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm_mer.checkpoints.description import BackboneReference
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import replaced_folder
from llm_mer.storage.fingerprints import files_sha256

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
BACKBONE_SUFFIXES = (".json", ".safetensors", ".bin", ".gguf", ".model", ".jinja", ".txt")
BACKBONE_COPY = "backbone"
"""Folder of a backbone that lies in a checkpoint, or one folder up."""
COPY_LIMIT = 200 * 2**20
"""A local backbone folder up to this size is copied into the checkpoint unless told otherwise."""


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over ``config.json`` and every weight file of a local backbone."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"backbone: {folder} has no config.json; a backbone folder is one written by save_pretrained")
    return files_sha256([config, *(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern))])


def is_backbone_file(name: str) -> bool:
    """Whether a file in a copied backbone's folder may come from a backbone, and be replaced by another one's."""
    return name.endswith(BACKBONE_SUFFIXES)


def save_backbone_reference(source: str, output: Path, save: str, quantization: str, dtype: str) -> BackboneReference:
    """Describe the backbone, copying a local folder into ``output/backbone`` as ``save`` says."""
    path = Path(source)
    if not path.is_dir():
        return BackboneReference(source, None, None, quantization, dtype)
    fingerprint = folder_fingerprint(path)
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    folder = None
    if save == "always" or (save == "auto" and size <= COPY_LIMIT):
        target = output / BACKBONE_COPY
        if not (target.is_dir() and folder_fingerprint(target) == fingerprint):
            with replaced_folder(target, is_backbone_file) as staging:
                shutil.copytree(path, staging, dirs_exist_ok=True)
        folder = BACKBONE_COPY
    return BackboneReference(path.name, folder, fingerprint, quantization, dtype)


def check_backbone(reference: BackboneReference | None, source: str, checkpoint: str) -> None:
    """Refuse a backbone that is not the one a checkpoint was trained on, naming both fingerprints.

    Raises:
        UserError: other weights or configuration, or a checkpoint of an adapter alone. What came from the hub, or goes
            there, has no fingerprint and is taken at its word.
    """
    if reference is None:
        raise UserError(f"{checkpoint} holds an adapter alone, trained with --backbone none; {source!r} has no place in it")
    if reference.fingerprint is None or not Path(source).is_dir():
        return
    found = folder_fingerprint(Path(source))
    if found != reference.fingerprint:
        raise UserError(
            f"{source}: fingerprint {found[:12]}…, but {checkpoint} was trained on a backbone with "
            f"{reference.fingerprint[:12]}…"
        )


def find_backbone(reference: BackboneReference, checkpoint: Path, override: str | None) -> str:
    """Where to load the backbone from: an override, the copy beside the checkpoint, or the hub name.

    Raises:
        UserError: a local backbone that was not copied, or one whose weights are not those trained on.
    """
    if override is None and reference.folder is not None:
        for base in (checkpoint, checkpoint.parent):
            if (base / reference.folder / "config.json").is_file():
                check_backbone(reference, str(base / reference.folder), str(checkpoint))
                return str(base / reference.folder)
        raise UserError(f"{checkpoint}: its backbone should lie in {reference.folder}/ here or one folder up; it does not")
    if override is not None:
        check_backbone(reference, override, str(checkpoint))
        return override
    if reference.fingerprint is not None:
        raise UserError(
            f"{checkpoint} was trained on the local backbone {reference.name!r}, which was not copied into it; "
            f"name its folder with --backbone (fingerprint {reference.fingerprint[:12]}…)"
        )
    return reference.name
