"""A checkpoint put on the Hugging Face hub: what loads again, and no more."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from llm_mer.checkpoints.backbone_reference import BACKBONE_COPY, find_backbone
from llm_mer.checkpoints.description import CheckpointDescription, check_description
from llm_mer.checkpoints.hub import HUB_NAME
from llm_mer.checkpoints.integrity import CALIBRATION_FILE, CHECKSUMS_FILE, verify_checkpoint, write_checksums
from llm_mer.checkpoints.run_differences import without_folders
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest
from llm_mer.errors import UserError, first_line
from llm_mer.reporting.model_card import CARD_FILE, model_card
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.json_files import read_json

PUSHED = (
    "adapter_config.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "trajectories.jsonl",
    CALIBRATION_FILE,
)
"""Files of a checkpoint that are copied as they are. Optimiser, trainer state and logs stay where they are."""
WRITTEN = ("config.json", "llm_mer.json", MANIFEST, CHECKSUMS_FILE, CARD_FILE)
"""Files that are written anew, without the folders of this machine."""


def push_to_hub(
    checkpoint: Path | str,
    repository: str,
    *,
    private: bool = True,
    evaluations: Sequence[Path] = (),
    license: str | None = None,
) -> str:
    """Upload a checkpoint, so that ``MerPipeline.from_pretrained(repository)`` answers as the folder does.

    The token is the hub library's own: ``HF_TOKEN`` or the one `hf auth login` kept. A ``README.md`` in the folder is
    taken as the model card; without one a card is made (:func:`~llm_mer.reporting.model_card.model_card`).

    Args:
        repository: ``owner/name``, made where it is not there. private: whether only its owner can read it.
        evaluations, license: for the card, see there.

    Returns:
        The address of the commit.

    Raises:
        UserError: not a checkpoint, one whose backbone would be missing there, a name that is none, a repository that is
            public where a private one was asked for, or what the hub refuses.
    """
    folder = Path(checkpoint)
    if HUB_NAME.fullmatch(repository) is None:
        raise UserError(f"repository: {repository!r} is no name on the hub; write OWNER/NAME")
    with tempfile.TemporaryDirectory(prefix="llm-mer-push-") as scratch:
        staged = stage_checkpoint(folder, Path(scratch), repository, evaluations, license)
        return _upload(staged, repository, private)


def stage_checkpoint(
    folder: Path, target: Path, repository: str, evaluations: Sequence[Path] = (), license: str | None = None
) -> Path:
    """Fill ``target`` with the files that belong on the hub. Arguments and errors are those of :func:`push_to_hub`."""
    description = CheckpointDescription.load(folder)
    check_description(description, folder / "llm_mer.json")
    reference = description.backbone
    if reference is not None and reference.folder is None and reference.fingerprint is not None:
        raise UserError(
            f"{folder}: its backbone {reference.name!r} is a local folder that was not copied into it, so that it would "
            "load nowhere else; train with save_backbone: always, or name the backbone by its hub name"
        )
    verify_checkpoint(folder)
    for pattern in PUSHED:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, target / path.name)
    if reference is not None and reference.folder is not None:
        place = Path(find_backbone(reference, folder, None))  # here, or one folder up for a checkpoint-N
        shutil.copytree(place, target / BACKBONE_COPY)
        description = replace(description, backbone=replace(reference, folder=BACKBONE_COPY))
    replace(description, data=without_folders(description.data)).save(target)
    if (target / "adapter_config.json").is_file():
        # AutoModel reads the configuration of what this names: the repository itself holds it.
        entry = read_json(target / "adapter_config.json", f"{folder}: no adapter_config.json")
        write_json_atomically(target / "adapter_config.json", {**entry, "base_model_name_or_path": repository})
    if (folder / MANIFEST).is_file():
        write_json_atomically(target / MANIFEST, asdict(RunManifest.load(folder).without_places()))
    if (folder / CARD_FILE).is_file():
        shutil.copyfile(folder / CARD_FILE, target / CARD_FILE)
    else:
        text = model_card(folder, evaluations, license, repository)
        (target / CARD_FILE).write_text(text, encoding="utf-8")
    write_checksums(target)
    return target


def _upload(staged: Path, repository: str, private: bool) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UserError(f"{repository}: the repository is public, and a private one was asked for; say --public")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=staged,
            commit_message="Checkpoint of llm_mer",
            delete_patterns=[*PUSHED, *WRITTEN, f"{BACKBONE_COPY}/*"],  # what an earlier push left and this one has not
        )
    except LocalTokenNotFoundError:
        raise UserError(f"{repository}: pushing needs a token of the hub: `hf auth login`, or HF_TOKEN") from None
    except (OSError, HTTPError, ValueError) as error:  # no connection, no permission, a name that the hub refuses, offline
        if isinstance(error, UserError):
            raise
        raise UserError(f"{repository}: the hub refuses or cannot be reached: {first_line(error)}") from None
    return str(commit.commit_url)
