"""What every program does around its work: log lines, exit codes, and a user's mistake as one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from llm_mer.cli.failures import explain_failure
from llm_mer.cli.foreign_messages import hide_foreign_messages
from llm_mer.distributed.process_group import shutdown_process_group
from llm_mer.errors import UserError

USER_ERROR, INTERRUPTED = 2, 130
"""Exit codes: a mistake of the user's, and Ctrl-C or a reader of the output that has gone."""

NO_REPORTS: dict[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers, TRL and gradio
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Environment variables with which libraries leave out reports of their use to their makers, unless they are set already."""

NO_FOREIGN_CODE: dict[str, str] = {"USE_HUB_KERNELS": "0"}
"""Environment variables with which libraries load no compiled code from a hub, unless they are set already."""


def set_library_defaults() -> None:
    """Set :data:`NO_REPORTS` and :data:`NO_FOREIGN_CODE` for this process and those it starts.

    Libraries read them when they are imported.
    """
    for name, value in {**NO_REPORTS, **NO_FOREIGN_CODE}.items():
        os.environ.setdefault(name, value)


def configure_logging() -> None:
    """Show this package's progress and warnings, and others' warnings, on standard error as plain lines."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("llm_mer").setLevel(logging.INFO)
    hide_foreign_messages()


def run_program(
    program: str, work: Callable[[], int], interrupted: str = "interrupted; the same command goes on from here"
) -> int:
    """Do the work and return the exit code.

    A :class:`UserError`, and what the machine is to blame for (:func:`~llm_mer.cli.failures.explain_failure`), becomes one
    line on standard error and exit code 2 (or the error's own ``exit_code``); Ctrl-C is 130. Any other exception is a defect
    of this program and keeps its traceback.

    Args:
        program: begins the line, e.g. ``llm-mer evaluate``.
        work: returns the exit code of a run that went well.
        interrupted: what to say after Ctrl-C.
    """
    configure_logging()
    set_library_defaults()
    try:
        code = work()
        shutdown_process_group()
        sys.stdout.flush()
    except UserError as error:
        print_error(program, str(error))
        return int(getattr(error, "exit_code", USER_ERROR))
    except KeyboardInterrupt:
        print(f"\n{program}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes standard output once more at its end, and would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except Exception as error:
        if (told := explain_failure(error)) is None:
            raise
        print_error(program, told)
        return USER_ERROR
    return code


def print_error(program: str, message: str) -> None:
    """One line on standard error; of several processes each names its rank."""
    rank = os.environ.get("RANK", "0") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "0"
    place = "" if rank == "0" else f" (process {rank})"
    print(f"{program}{place}: {message}", file=sys.stderr, flush=True)
