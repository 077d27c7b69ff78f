"""Where a checkpoint's frozen backbone is, and whether it is the one that was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llm_mer.backbones.sources import LocalBackbone, find_local_backbone
from llm_mer.checkpoints.description import BackboneReference
from llm_mer.errors import UserError
from llm_mer.resources.model_packages import find_model_file, model_packages
from llm_mer.storage.atomic_files import replaced_folder
from llm_mer.storage.fingerprints import file_sha256, files_sha256

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


def fingerprint_of(backbone: LocalBackbone) -> str:
    """SHA-256 of a GGUF file, whatever it is called, or as :func:`folder_fingerprint`."""
    return folder_fingerprint(backbone.folder) if backbone.gguf is None else file_sha256(backbone.gguf)


def identify_backbone(source: str | None) -> dict[str, Any] | None:
    """Name and fingerprint of a backbone as a checkpoint notes them; the fingerprint of a hub name is None."""
    if source is None:
        return None
    found = find_local_backbone(source)
    if found is None:
        return {"name": source, "fingerprint": None}
    return {"name": found.name, "fingerprint": fingerprint_of(found)}


def is_backbone_file(name: str) -> bool:
    """Whether a file in a copied backbone's folder may come from a backbone, and be replaced by another one's."""
    return name.endswith(BACKBONE_SUFFIXES)


def is_copied(backbone: LocalBackbone, save: str) -> bool:
    """Whether a training copies a backbone of this machine into its checkpoint, as ``save_backbone`` says."""
    return save == "always" or (save == "auto" and backbone.bytes <= COPY_LIMIT and not backbone.packaged)


def save_backbone_reference(source: str, output: Path, save: str, quantization: str, dtype: str) -> BackboneReference:
    """Describe the backbone, copying a local folder or GGUF file into ``output/backbone`` as ``save`` says.

    What a package carries is had by its name everywhere, so that ``auto`` copies it no more than a model of the hub.
    """
    found = find_local_backbone(source)
    if found is None:
        return BackboneReference(source, None, None, quantization, dtype)
    fingerprint = fingerprint_of(found)
    folder = None
    if is_copied(found, save):
        target = output / BACKBONE_COPY
        if _fingerprint_of_copy(target) != fingerprint:
            with replaced_folder(target, is_backbone_file) as staging:
                if found.gguf is None:
                    shutil.copytree(found.folder, staging, dirs_exist_ok=True)
                else:
                    staging.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(found.gguf, staging / found.gguf.name)
        folder = BACKBONE_COPY
    return BackboneReference(found.name, folder, fingerprint, quantization, dtype)


def _fingerprint_of_copy(folder: Path) -> str | None:
    """That of the backbone in a folder; None where there is none."""
    if not folder.is_dir():
        return None
    copy = find_local_backbone(folder)
    assert copy is not None
    return None if copy.gguf is None and not (folder / "config.json").is_file() else fingerprint_of(copy)


def check_backbone(reference: BackboneReference | None, source: str, checkpoint: str) -> None:
    """Refuse a backbone that is not the one a checkpoint was trained on, naming both fingerprints.

    Raises:
        UserError: other weights or configuration, or a checkpoint of an adapter alone. What came from the hub, or goes
            there, has no fingerprint and is taken at its word.
    """
    if reference is None:
        raise UserError(f"{checkpoint} holds an adapter alone, trained with --backbone none; {source!r} has no place in it")
    if reference.fingerprint is None:
        return
    local = find_local_backbone(source)
    if local is None:
        return
    found = fingerprint_of(local)
    if found != reference.fingerprint:
        raise UserError(
            f"{source}: fingerprint {found[:12]}…, but {checkpoint} was trained on a backbone with "
            f"{reference.fingerprint[:12]}…"
        )


def find_backbone(reference: BackboneReference, checkpoint: Path, override: str | None) -> str:
    """Where to load the backbone from: an override, the copy beside the checkpoint, the package's model or the hub name.

    Raises:
        UserError: a local backbone that was not copied, a package that is not installed, or a backbone whose weights are
            not those trained on.
    """
    if override is None and reference.folder is not None:
        for base in (checkpoint, checkpoint.parent):
            if _fingerprint_of_copy(base / reference.folder) is not None:
                check_backbone(reference, str(base / reference.folder), str(checkpoint))
                return str(base / reference.folder)
        raise UserError(f"{checkpoint}: its backbone should lie in {reference.folder}/ here or one folder up; it does not")
    if override is not None:
        check_backbone(reference, override, str(checkpoint))
        return override
    package = model_packages().get(reference.name)
    if reference.fingerprint is not None and package is not None:
        if find_model_file(reference.name) is None:
            raise UserError(
                f"{checkpoint} was trained on the backbone {reference.name!r} of the package {package.package}, which is "
                f"not installed: llm-mer get {reference.name}; or name its file with --backbone"
            )
        check_backbone(reference, reference.name, str(checkpoint))
        return reference.name
    if reference.fingerprint is not None:
        raise UserError(
            f"{checkpoint} was trained on the local backbone {reference.name!r}, which was not copied into it; "
            f"name its folder or file with --backbone (fingerprint {reference.fingerprint[:12]}…)"
        )
    return reference.name
