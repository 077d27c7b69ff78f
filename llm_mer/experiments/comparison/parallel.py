"""Trainings of a comparison in several processes at a time."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from threading import RLock

from llm_mer.errors import UserError
from llm_mer.experiments.comparison.results import RunResult, RunSettings
from llm_mer.experiments.comparison.systems import PlannedRun, plan_systems
from llm_mer.experiments.options import CompareConfig
from llm_mer.storage.temporary_folders import temporary_folder
from llm_mer.storage.worker_processes import end_with_parent, ended_workers, without_interrupts

logger = logging.getLogger(__name__)


def train_in_parallel(
    config: CompareConfig, planned: Sequence[tuple[PlannedRun, RunSettings]]
) -> Iterator[tuple[PlannedRun, RunResult]]:
    """Each run and its result as it is finished, ``config.jobs`` of them at a time, sharing this process's threads.

    Raises:
        UserError: as the first run that fails, after which the others are ended; a process that was killed.
    """
    import torch

    threads = max(1, torch.get_num_threads() // config.jobs)
    waiting = list(reversed(planned))
    running: dict[Future[RunResult], PlannedRun] = {}
    # What an ended worker leaves in its temporary folder goes with this one.
    with (
        temporary_folder("llm-mer-compare-") as scratch,
        ProcessPoolExecutor(config.jobs, get_context("spawn"), _start_worker, (config, str(scratch), threads)) as pool,
        ended_workers(Path(config.output)),
    ):
        try:
            while waiting or running:
                while waiting and len(running) < config.jobs:
                    run, settings = waiting.pop()
                    with without_interrupts():
                        running[pool.submit(_train, config, run, settings)] = run
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise UserError(
                f"a process of --jobs {config.jobs} was killed, as the system does when memory is short; the same command "
                "keeps what is finished and does the rest, with fewer jobs"
            ) from None


def _start_worker(config: CompareConfig, scratch: str, threads: int) -> None:
    import torch
    from tqdm import tqdm

    end_with_parent()
    tqdm.set_lock(RLock())  # its own is one of processes, which a worker that is ended would leave in the system
    tempfile.tempdir = scratch
    torch.set_num_threads(threads)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # the logs of several trainings in one another
    plan_systems(config)  # adapters that are classes of the user's are known by their names from here on


def _train(config: CompareConfig, run: PlannedRun, settings: RunSettings) -> RunResult:
    from llm_mer.experiments.comparison.runs import base_of_run, train_and_predict

    base = base_of_run(config, run)
    return train_and_predict(config, base, run.system, run.seed, Path(config.output) / run.folder, settings)
