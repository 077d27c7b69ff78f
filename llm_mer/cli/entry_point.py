"""The frame of every program: logging, exit codes, and user errors as one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from llm_mer.cli.failures import explain_failure
from llm_mer.cli.interrupts import EXIT_CODE, handle_interrupts
from llm_mer.cli.library_messages import hide_library_messages
from llm_mer.distributed.process_group import shutdown_process_group
from llm_mer.errors import UserError
from llm_mer.storage.standard_output import write_standard_output

USER_ERROR = 2
"""Exit code of a user error. Ctrl-C and a closed output pipe have :data:`EXIT_CODE`."""

TELEMETRY_OPT_OUT: dict[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers, TRL and gradio
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Environment variables that switch off the telemetry of libraries, unless they are set already."""

REMOTE_CODE_OPT_OUT: dict[str, str] = {"USE_HUB_KERNELS": "0"}
"""Environment variables that keep libraries from loading compiled code from a hub, unless they are set already."""


def set_library_defaults() -> None:
    """Set :data:`TELEMETRY_OPT_OUT` and :data:`REMOTE_CODE_OPT_OUT` for this process and those it starts.

    Libraries read them on import.
    """
    for name, value in {**TELEMETRY_OPT_OUT, **REMOTE_CODE_OPT_OUT}.items():
        os.environ.setdefault(name, value)


def configure_logging() -> None:
    """Show this package's progress and warnings, and others' warnings, on standard error as plain lines."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("llm_mer").setLevel(logging.INFO)
    hide_library_messages()


def run_program(
    program: str, work: Callable[[], int], interrupted: str = "interrupted; the same command goes on from here"
) -> int:
    """Run ``work`` and return the exit code.

    A :class:`UserError` or a failure of the machine (:func:`~llm_mer.cli.failures.explain_failure`) becomes one line on
    standard error and exit code 2 (or the error's own ``exit_code``); Ctrl-C is 130. Any other exception is a bug in this
    program and keeps its traceback. A second Ctrl-C does not disturb the clean-up after the first, a third ends the process
    (:mod:`~llm_mer.cli.interrupts`).

    Args:
        program: start of the line, e.g. ``llm-mer evaluate``.
        work: returns the exit code of a successful run.
        interrupted: message after Ctrl-C.
    """
    with handle_interrupts(program):
        return _run(program, work, interrupted)


def _run(program: str, work: Callable[[], int], interrupted: str) -> int:
    try:
        configure_logging()
        set_library_defaults()
        code = work()
        shutdown_process_group()
        write_standard_output()
    except UserError as error:
        print_error(program, str(error))
        return int(getattr(error, "exit_code", USER_ERROR))
    except KeyboardInterrupt:
        print(f"\n{program}: {interrupted}", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:
        # The interpreter flushes standard output again at exit, and would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CODE
    except Exception as error:
        if (message := explain_failure(error)) is None:
            raise
        print_error(program, message)
        return USER_ERROR
    return code


def print_error(program: str, message: str) -> None:
    """Print one line on standard error; with several processes it names the rank."""
    rank = os.environ.get("RANK", "0") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "0"
    rank_note = "" if rank == "0" else f" (process {rank})"
    print(f"{program}{rank_note}: {message}", file=sys.stderr, flush=True)
