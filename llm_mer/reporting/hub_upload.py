"""Uploading a checkpoint to the Hugging Face hub: exactly the files needed to load it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.backbone_reference import BACKBONE_COPY, find_backbone
from llm_mer.checkpoints.description import DESCRIPTION_FILE, TRAJECTORIES, CheckpointDescription, check_description
from llm_mer.checkpoints.hub import HUB_NAME
from llm_mer.checkpoints.integrity import ANSWERING_FILES, CHECKSUMS_FILE, verify_checkpoint, write_checksums
from llm_mer.checkpoints.run_differences import without_folders
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest
from llm_mer.errors import UserError, first_line
from llm_mer.reporting.model_card import CARD_FILE, model_card
from llm_mer.resources.model_packages import model_packages
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.json_files import read_json
from llm_mer.storage.temporary_folders import temporary_folder

COPIED_PATTERNS = (*(pattern for pattern in ANSWERING_FILES if pattern != DESCRIPTION_FILE), TRAJECTORIES)
"""Files of a checkpoint that are copied unchanged. Optimiser, trainer state and logs are not uploaded."""
REWRITTEN_FILES = ("config.json", DESCRIPTION_FILE, MANIFEST, CHECKSUMS_FILE, CARD_FILE)
"""Files that are rewritten without local paths."""


def push_to_hub(
    checkpoint: Path | str,
    repository: str,
    *,
    private: bool = True,
    evaluations: Sequence[Path] = (),
    license: str | None = None,
) -> str:
    """Upload a checkpoint, so that ``MerPipeline.from_pretrained(repository)`` works like the local folder.

    The token is the hub library's own: ``HF_TOKEN`` or the one `hf auth login` kept. A ``README.md`` in the folder is
    used as the model card; without one a card is generated (:func:`~llm_mer.reporting.model_card.model_card`).

    Args:
        repository: ``owner/name``, created if it does not exist. private: whether only its owner can read it.
        evaluations, license: see :func:`~llm_mer.reporting.model_card.model_card`.

    Returns:
        The URL of the commit.

    Raises:
        UserError: not a checkpoint, one whose backbone would be missing, an invalid name, a repository that is public
            although a private one was requested, or an error of the hub.
    """
    folder = Path(checkpoint)
    if HUB_NAME.fullmatch(repository) is None:
        raise UserError(f"repository: {repository!r} is not a repository name; use OWNER/NAME")
    with temporary_folder("llm-mer-push-") as scratch:
        target = scratch / "checkpoint"
        target.mkdir()
        staged = stage_for_hub(folder, target, repository, evaluations, license)
        return _upload(staged, repository, private)


def stage_for_hub(
    folder: Path, target: Path, repository: str, evaluations: Sequence[Path] = (), license: str | None = None
) -> Path:
    """Fill ``target`` with the files that belong on the hub. Arguments and errors are those of :func:`push_to_hub`."""
    description = CheckpointDescription.load(folder)
    check_description(description, folder / DESCRIPTION_FILE)
    reference = description.backbone
    local = reference is not None and reference.folder is None and reference.fingerprint is not None
    if reference is not None and local and reference.name not in model_packages():
        raise UserError(
            f"{folder}: its backbone {reference.name!r} is a local folder that was not copied into it, so it could not "
            "be loaded elsewhere; train with save_backbone: always, or name the backbone by its hub name"
        )
    verify_checkpoint(folder)
    for pattern in COPIED_PATTERNS:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, target / path.name)
    if reference is not None and reference.folder is not None:
        place = Path(find_backbone(reference, folder, None))  # in the checkpoint, or one level up for a checkpoint-N
        shutil.copytree(place, target / BACKBONE_COPY)
        description = replace(description, backbone=replace(reference, folder=BACKBONE_COPY))
    replace(description, data=without_folders(description.data)).save(target)
    if (target / "adapter_config.json").is_file():
        # AutoModel reads the configuration of the model named here: the repository itself.
        entry = read_json(target / "adapter_config.json", f"{folder}: no adapter_config.json")
        write_json_atomically(target / "adapter_config.json", {**entry, "base_model_name_or_path": repository})
    if (folder / MANIFEST).is_file():
        write_json_atomically(target / MANIFEST, asdict(RunManifest.load(folder).without_paths()))
    if (folder / CARD_FILE).is_file():
        shutil.copyfile(folder / CARD_FILE, target / CARD_FILE)
    else:
        text = model_card(folder, evaluations, license, repository)
        (target / CARD_FILE).write_text(text, encoding="utf-8")
    write_checksums(target)
    return target


def prepare_push(repository: str, private: bool) -> None:
    """Create the repository, or find that it is there and as private as wanted: before a training whose result goes there.

    Raises:
        UserError: an invalid name, no token, offline mode, no connection, or a repository that this token may not write.
    """
    if HUB_NAME.fullmatch(repository) is None:
        raise UserError(f"hub_model_id: {repository!r} is not a repository name; use OWNER/NAME")
    with _one_line(repository):
        import huggingface_hub

        _open_repository(huggingface_hub.HfApi(), repository, private)


def push_finished(checkpoint: Path, repository: str, private: bool) -> str:
    """:func:`push_to_hub` of a training's result; a failure says where the model lies and how to push it again.

    Raises:
        UserError: it could not be pushed; the checkpoint is whole.
    """
    try:
        return push_to_hub(checkpoint, repository, private=private)
    except UserError as error:
        public = "" if private else " --public"
        raise UserError(
            f"the training is finished and {checkpoint} holds its checkpoint, but it was not pushed: {error}; push it again "
            f"with `llm-mer push {checkpoint} {repository}{public}`"
        ) from error


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Errors of the hub's library as one line."""
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"{repository}: pushing needs a token of the hub: `hf auth login`, or HF_TOKEN") from None
    except (OSError, HTTPError, ValueError) as error:  # no connection, no permission, an invalid name, offline mode
        if isinstance(error, UserError):
            raise
        raise UserError(f"{repository}: the hub cannot be reached or refused the upload: {first_line(error)}") from None


def _open_repository(api: Any, repository: str, private: bool) -> None:
    api.create_repo(repository, private=private, exist_ok=True)
    if private and not api.repo_info(repository).private:
        raise UserError(f"{repository}: the repository is public, but a private one was requested; pass --public")


def _upload(staged: Path, repository: str, private: bool) -> str:
    import huggingface_hub

    with _one_line(repository):
        api = huggingface_hub.HfApi()
        _open_repository(api, repository, private)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=staged,
            commit_message="Checkpoint of llm_mer",
            delete_patterns=[
                *COPIED_PATTERNS,
                *REWRITTEN_FILES,
                f"{BACKBONE_COPY}/*",
            ],  # files of an earlier push that this one does not have
        )
    return str(commit.commit_url)
