"""``finetune.py`` and ``llm-mer train``: training a checkpoint, once or with each of several seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_mer.cli.train_help import EXAMPLES, names_manifest, requested_help
from llm_mer.cli.train_manifest import train_manifest
from llm_mer.errors import UserError

if TYPE_CHECKING:
    from llm_mer.training.run_config import RunConfig

__all__ = ["EXAMPLES", "Options", "finetune", "run"]


@dataclass
class Options:
    """None here: the command line is parsed by :mod:`llm_mer.training.parsing`."""


def run(arguments: Sequence[str]) -> None:
    """``llm-mer train``: see :func:`finetune`."""
    finetune(arguments, "llm-mer train")


def finetune(argv: Sequence[str] | None = None, program: str = "finetune.py") -> Path:
    """Parse, check, train, keep the best checkpoint, save; once, or once with each of ``seeds``.

    With ``--manifest`` everything from a table of clips to a report (:mod:`~llm_mer.cli.train_manifest`).

    Returns:
        The folder of the final checkpoint; with ``seeds`` the folder that contains one for each.

    Raises:
        SystemExit: 0 after printing the requested help.
        UserError: options, data or a checkpoint that do not match.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if (text := requested_help(arguments, program)) is not None:
        print(text, end="")
        raise SystemExit(0)
    if names_manifest(arguments):
        return train_manifest(arguments, program)
    from llm_mer.training.many_seeds import train_seeds
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.run import train

    config = parse_arguments(arguments)
    command = [program, *arguments]
    if config.training.seeds is not None:
        return train_seeds(config, command)
    output = Path(str(config.training.output_dir))
    repository = _checked_repository(config)
    train(config, command)
    if repository is not None and config.training.process_index == 0:
        from llm_mer.reporting.hub_upload import push_finished

        print(f"pushed to {push_finished(output, repository, _is_private(config))}")
    return output


def _is_private(config: RunConfig) -> bool:
    """``hub_private_repo``; as with `llm-mer push`, what is not said to be public is private."""
    return config.training.hub_private_repo is not False


def _checked_repository(config: RunConfig) -> str | None:
    """Where the finished checkpoint is pushed to; None without ``push_to_hub``.

    Raises:
        UserError: it could not be pushed there, or would load nowhere else.
    """
    if not config.training.given["push_to_hub"]:
        return None
    from llm_mer.backbones.sources import find_local_backbone
    from llm_mer.checkpoints.backbone_reference import is_copied
    from llm_mer.reporting.hub_upload import prepare_push

    local = find_local_backbone(config.model.backbone) if config.model.backbone != "none" else None
    if local is not None and not is_copied(local, config.model.save_backbone):
        raise UserError(
            f"push_to_hub: the local backbone {config.model.backbone!r} would not be copied into the checkpoint, which "
            "could then be loaded nowhere else; say save_backbone: always, or name the backbone by its hub name"
        )
    repository = str(config.training.hub_model_id)
    try:
        prepare_push(repository, _is_private(config))
    except UserError as error:
        raise UserError(
            f"push_to_hub: {error}; or leave push_to_hub out and push the finished checkpoint with `llm-mer push`"
        ) from error
    return repository
