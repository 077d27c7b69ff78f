"""``llm-mer compare``: adapters × ablations × seeds on one backbone and identical data order; one table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.errors import UserError
from llm_mer.experiments.comparison.ineffective_ablations import drop_ineffective_ablations
from llm_mer.experiments.comparison.parallel import train_in_parallel
from llm_mer.experiments.comparison.results import RUN, RunResult, RunSettings, read_result
from llm_mer.experiments.comparison.runs import base_config, base_of_run, run_config, train_and_predict
from llm_mer.experiments.comparison.systems import PlannedRun, System, check_metrics, plan_systems
from llm_mer.experiments.comparison.table import Comparison, markdown, tabulate
from llm_mer.experiments.options import CompareConfig
from llm_mer.resources.files import resolve_file
from llm_mer.storage.atomic_files import write_json_atomically, write_text_atomically
from llm_mer.storage.locks import lock_output

if TYPE_CHECKING:
    from llm_mer.prompting.tasks import Task
    from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)
TABLE = "comparison.md"
COMPARISON = "comparison.json"


def compare(config: CompareConfig) -> tuple[Comparison, list[System]]:
    """Train what is not finished yet; the comparison, also written as ``comparison.json``, and the systems that were run.

    Raises:
        UserError: options or data that do not fit one another, or finished runs of other options.
    """
    with lock_output(config.output):
        return _compare(config)


def _compare(config: CompareConfig) -> tuple[Comparison, list[System]]:
    from llm_mer.data.folds import fold_fingerprint
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.experiments.comparison.folds import prepare_folds
    from llm_mer.training.run_data import prepare_data

    config = replace(config, config=resolve_file(config.config))
    if not Path(config.config).is_file():
        raise UserError(f"--config {config.config}: no such file")
    check_metrics(config)
    systems, folder = plan_systems(config), Path(config.output)
    bases = {system.adapter: base_config(config, system.adapter) for system in systems}
    folds = prepare_folds(config, bases[systems[0].adapter])
    planned = [PlannedRun(*run) for run in product(systems, config.seeds, [None] if folds is None else folds.names)]
    configs = {
        run.folder: run_config(
            base_of_run(config, run, bases[run.system.adapter]), run.system, run.seed, folder / run.folder
        )
        for run in planned
    }
    first = configs[planned[0].folder].data
    find_split(read_utterances(first.data, first.folds, first.fold)[0], config.split, first.data)
    prepared = prepare_data(first, with_prompts=False)
    if config.dialogue_decoder and all(task.kind != "classification" for task in prepared.tasks):
        raise UserError("--dialogue_decoder: no task has classes to decode")
    of_first_run = {s.name: configs[s.folder(config.seeds[0], planned[0].fold)] for s in systems}
    systems = drop_ineffective_ablations(config, systems, of_first_run, prepared)
    tasks, fingerprints = prepared.tasks, {planned[0].fold: prepared.fingerprint}
    del prepared
    if folds is not None:
        whole = read_utterances(first.data)[2]
        fingerprints = {fold.name: fold_fingerprint(whole, fold) for fold in folds.folds}
    kept = {system.name for system in systems}
    planned = [run for run in planned if run.system.name in kept]
    wanted, finished = _read_finished_runs(config, planned, configs, fingerprints, tasks)
    runs = _train_missing_runs(config, planned, bases, wanted, finished)
    comparison = tabulate(config, systems, runs, folds)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / COMPARISON, asdict(comparison))
    return comparison, systems


def _read_finished_runs(
    config: CompareConfig,
    planned: Sequence[PlannedRun],
    configs: Mapping[str, RunConfig],
    fingerprints: Mapping[str | None, str],
    tasks: Sequence[Task],
) -> tuple[dict[str, RunSettings], dict[str, RunResult]]:
    """The settings of every run of the comparison, and the results of those that are finished, by folder.

    Args:
        fingerprints: of the data of each fold, of None without folds.

    Raises:
        UserError: a finished run with other settings.
    """
    from llm_mer.checkpoints.backbone_reference import identify_backbone
    from llm_mer.checkpoints.run_differences import questions_digest
    from llm_mer.prompting.templates import load_prompts
    from llm_mer.training.model_builder import resolve_backbone

    @cache
    def identify(backbone: str) -> dict[str, Any] | None:
        return None if backbone == "none" else identify_backbone(resolve_backbone(backbone))

    wanted: dict[str, RunSettings] = {}
    finished: dict[str, RunResult] = {}
    for run in planned:
        run_folder = Path(config.output) / run.folder
        chosen = configs[run.folder]
        no_backbone = chosen.model.backbone == "none"
        wanted[run.folder] = RunSettings(
            chosen.options(),
            config.split,
            list(config.conditions),
            config.dialogue_decoder,
            fingerprints[run.fold],
            questions_digest(tasks, [] if no_backbone else load_prompts(chosen.data.prompts)),
            identify(chosen.model.backbone),
        )
        if (run_folder / RUN).is_file():
            finished[run.folder] = read_result(run_folder / RUN)
            differences = finished[run.folder].differences(wanted[run.folder])
            if differences:
                raise UserError(
                    f"{run_folder} holds a run with other options: {'; '.join(differences)}; "
                    "name another --output or delete it"
                )
    return wanted, finished


def _train_missing_runs(
    config: CompareConfig,
    planned: Sequence[PlannedRun],
    bases: Mapping[str, RunConfig],
    wanted: Mapping[str, RunSettings],
    finished: Mapping[str, RunResult],
) -> dict[str, list[RunResult]]:
    """The results of all runs by system, training those that are not finished."""
    results = dict(finished)
    missing = [run for run in planned if run.folder not in results]
    numbers = {run.folder: f"[{number}/{len(planned)}]" for number, run in enumerate(planned, start=1)}
    for run in planned if config.jobs == 1 else [run for run in planned if run.folder in finished]:
        logger.info("%s %s%s", numbers[run.folder], run, " (done before)" if run.folder in finished else "")
        if run.folder not in results:
            base = base_of_run(config, run, bases[run.system.adapter])
            with redirect_stdout(sys.stderr):  # the trainer's log; standard output is the table's
                results[run.folder] = train_and_predict(
                    config, base, run.system, run.seed, Path(config.output) / run.folder, wanted[run.folder]
                )
    if config.jobs > 1 and missing:
        logger.info("%d trainings, %d at a time", len(missing), config.jobs)
        for run, result in train_in_parallel(config, [(run, wanted[run.folder]) for run in missing]):
            logger.info("%s %s", numbers[run.folder], run)
            results[run.folder] = result
    by_system: dict[str, list[RunResult]] = {}
    for run in planned:
        by_system.setdefault(run.system.name, []).append(results[run.folder])
    return by_system


def run(config: CompareConfig) -> str:
    """``llm-mer compare``: the table, also written as ``comparison.md``."""
    with lock_output(config.output):
        text = markdown(compare(config)[0])
        write_text_atomically(Path(config.output) / TABLE, text + "\n")
    return text
