"""``finetune.py`` and ``llm-mer train``: training a checkpoint, once or with each of several seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_mer.cli.train_help import EXAMPLES, names_manifest, requested_help
from llm_mer.cli.train_manifest import train_manifest

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
    train(config, command)
    return output
