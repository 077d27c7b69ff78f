"""Locations of the files shipped with the package: beside this module in a wheel, at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("prompts", "configs", "deepspeed_configs", "accelerate_configs", "finetune.py", "infer.py")
"""Names at the top of the repository that are included in the wheel."""


def resource_root() -> Path:
    """The folder that holds every name of :data:`SHIPPED`."""
    here = Path(__file__).resolve().parent
    return here if (here / "prompts").is_dir() else here.parents[1]


def resource(name: str) -> Path:
    """A shipped file or folder by its path from the top of the repository, e.g. ``configs/quickstart.yaml``.

    Raises:
        FileNotFoundError: the name is not shipped, or the installation lacks it.
    """
    path = resource_root() / name
    if Path(name).parts[:1] == () or Path(name).parts[0] not in SHIPPED or not path.exists():
        raise FileNotFoundError(f"{name!r} is not among the files that come with llm_mer in {resource_root()}")
    return path


def resolve_file(name: str) -> str:
    """Resolve a file that a user named: the path as given if it exists, else the shipped file of that name.

    A name that is neither is returned unchanged, for the caller's own error. ``configs/quickstart.yaml`` therefore means the
    shipped file wherever the working directory has no file of that name.
    """
    path = Path(name)
    if path.exists() or path.is_absolute() or ".." in path.parts or path.parts[:1] == () or path.parts[0] not in SHIPPED:
        return name
    shipped = resource_root() / path
    return str(shipped) if shipped.exists() else name
