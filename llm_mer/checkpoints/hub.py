"""A checkpoint by its name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from llm_mer.errors import UserError, first_line

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w-][\w.-]*")
READ_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "vocab.*", "backbone/*")
"""What is fetched of a repository: nothing that would have to be unpickled or executed."""
NEVER_READ = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def is_hub_name(name: str) -> bool:
    """Whether a checkpoint's name is one on the hub: ``owner/name``, where there is no folder ``owner`` here."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).parent.is_dir()


def resolve_checkpoint(name: Path | str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched (or found in the hub's cache) where ``name`` is a name on the hub.

    The token, where a repository asks for one, is the hub library's own: ``HF_TOKEN`` or the one `hf auth login` kept.

    Args:
        name: a folder, or ``owner/name``; a :class:`Path` is a folder always.
        revision: branch, tag or commit; of a hub name only.

    Raises:
        UserError: neither a text nor a path; a repository or revision that is not there or not allowed, no connection, or a
            revision of a folder.
    """
    if not isinstance(name, Path | str) or not str(name):
        raise UserError(f"checkpoint: {name!r} is no folder and no name on the hub; give one of them as text or a Path")
    if isinstance(name, Path) or not is_hub_name(name):
        if revision is not None:
            raise UserError(f"revision: {revision!r} belongs to a hub name; {name} is a folder, or no folder that is here")
        return Path(name)
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(READ_PATTERNS), ignore_patterns=list(NEVER_READ)
            )
        )
    except GatedRepoError:
        raise UserError(f"{name}: the repository on the hub is gated; accept its terms there and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such folder here, and no such repository on the hub (a private one needs HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: the repository on the hub has no revision {revision!r}") from None
    except (OSError, HTTPError) as error:  # no connection, no permission, and offline with nothing in the cache
        raise UserError(f"{name}: no such folder here, and it cannot be fetched from the hub: {first_line(error)}") from None
