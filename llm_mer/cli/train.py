"""``finetune.py`` and ``llm-mer train``: options to a checkpoint, once or once with each of many seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def finetune(argv: Sequence[str] | None = None, program: str = "finetune.py") -> Path:
    """Parse, check, train, keep the best, save; once, or once with each of ``seeds``.

    Returns:
        The folder of the final checkpoint; with ``seeds`` the folder that holds one for each.
    """
    from llm_mer.training.many_seeds import train_seeds
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.run import prepare_run, train_run

    arguments = list(sys.argv[1:] if argv is None else argv)
    config = parse_arguments(arguments)
    command = [program, *arguments]
    if config.training.seeds is not None:
        return train_seeds(config, command)
    run = prepare_run(config, command)
    train_run(run)
    return run.output
