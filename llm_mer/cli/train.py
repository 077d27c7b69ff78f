"""``finetune.py`` and ``llm-mer train``: options to a checkpoint, once or once with each of many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_mer.training.many_seeds import train_seeds
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run import prepare_run, train_run


def finetune(argv: Sequence[str] | None = None) -> Path:
    """``finetune.py``: parse, check, train, keep the best, save; once, or once with each of ``seeds``.

    Returns:
        The folder of the final checkpoint; with ``seeds`` the folder that holds one for each.
    """
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    data, model, training, adapter_options = parse_arguments(arguments)
    command = ["finetune.py", *arguments]
    if training.seeds is not None:
        return train_seeds(data, model, training, adapter_options, command)
    run = prepare_run(data, model, training, adapter_options, command)
    train_run(run)
    return run.output
