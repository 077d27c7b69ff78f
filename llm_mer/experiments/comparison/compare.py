"""``llm-mer compare``: adapters × ablations × seeds on one backbone and identical data order; one table."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.errors import UserError
from llm_mer.experiments.comparison.ineffective_ablations import drop_ineffective_ablations
from llm_mer.experiments.comparison.results import RUN, RunResult, RunSettings, read_result
from llm_mer.experiments.comparison.runs import base_config, run_config, train_and_predict
from llm_mer.experiments.comparison.systems import System, check_metrics, plan_systems
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
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.training.run_data import prepare_data

    config = replace(config, config=resolve_file(config.config))
    if not Path(config.config).is_file():
        raise UserError(f"--config {config.config}: no such file")
    check_metrics(config)
    systems, folder = plan_systems(config), Path(config.output)
    bases = {system.adapter: base_config(config, system.adapter) for system in systems}
    configs = {
        (system.name, seed): run_config(bases[system.adapter], system, seed, folder / system.folder(seed))
        for system, seed in product(systems, config.seeds)
    }
    first = configs[systems[0].name, config.seeds[0]].data
    find_split(read_utterances(first.data)[0], config.split, first.data)
    prepared = prepare_data(first, with_prompts=False)
    if config.dialogue_decoder and all(task.kind != "classification" for task in prepared.tasks):
        raise UserError("--dialogue_decoder: no task has classes to decode")
    systems = drop_ineffective_ablations(
        config, systems, {s.name: configs[s.name, config.seeds[0]] for s in systems}, prepared
    )
    fingerprint, tasks = prepared.fingerprint, prepared.tasks
    del prepared
    wanted, finished = _read_finished_runs(config, systems, configs, fingerprint, tasks)
    runs = _train_missing_runs(config, systems, bases, wanted, finished)
    comparison = tabulate(config, systems, runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / COMPARISON, asdict(comparison))
    return comparison, systems


def _read_finished_runs(
    config: CompareConfig,
    systems: Sequence[System],
    configs: Mapping[tuple[str, int], RunConfig],
    fingerprint: str,
    tasks: Sequence[Task],
) -> tuple[dict[Path, RunSettings], dict[Path, RunResult]]:
    """The settings of every run of the comparison, and the results of those that are finished, by folder.

    Raises:
        UserError: a finished run with other settings.
    """
    from llm_mer.checkpoints.backbone_reference import identify_backbone
    from llm_mer.checkpoints.run_differences import questions_digest
    from llm_mer.prompting.templates import load_prompts
    from llm_mer.training.model_builder import resolve_backbone

    identities: dict[str, dict[str, Any] | None] = {}

    def identify(backbone: str) -> dict[str, Any] | None:
        if backbone not in identities:
            identities[backbone] = None if backbone == "none" else identify_backbone(resolve_backbone(backbone))
        return identities[backbone]

    wanted: dict[Path, RunSettings] = {}
    finished: dict[Path, RunResult] = {}
    for system, seed in product(systems, config.seeds):
        run_folder = Path(config.output) / system.folder(seed)
        chosen = configs[system.name, seed]
        no_backbone = chosen.model.backbone == "none"
        wanted[run_folder] = RunSettings(
            chosen.options(),
            config.split,
            list(config.conditions),
            config.dialogue_decoder,
            fingerprint,
            questions_digest(tasks, [] if no_backbone else load_prompts(chosen.data.prompts)),
            identify(chosen.model.backbone),
        )
        if (run_folder / RUN).is_file():
            finished[run_folder] = read_result(run_folder / RUN)
            differences = finished[run_folder].differences(wanted[run_folder])
            if differences:
                raise UserError(
                    f"{run_folder} holds a run with other options: {'; '.join(differences)}; "
                    "name another --output or delete it"
                )
    return wanted, finished


def _train_missing_runs(
    config: CompareConfig,
    systems: Sequence[System],
    bases: Mapping[str, RunConfig],
    wanted: Mapping[Path, RunSettings],
    finished: Mapping[Path, RunResult],
) -> dict[str, list[RunResult]]:
    """The results of all runs by system, training those that are not finished."""
    results = dict(finished)
    runs: dict[str, list[RunResult]] = {}
    for number, (system, seed) in enumerate(product(systems, config.seeds), start=1):
        run_folder = Path(config.output) / system.folder(seed)
        note = " (done before)" if run_folder in results else ""
        logger.info("[%d/%d] %s, seed %d%s", number, len(wanted), system.name, seed, note)
        if run_folder not in results:
            with redirect_stdout(sys.stderr):  # the trainer's log; standard output is the table's
                results[run_folder] = train_and_predict(
                    config, bases[system.adapter], system, seed, run_folder, wanted[run_folder]
                )
        runs.setdefault(system.name, []).append(results[run_folder])
    return runs


def run(config: CompareConfig) -> str:
    """``llm-mer compare``: the table, also written as ``comparison.md``."""
    with lock_output(config.output):
        text = markdown(compare(config)[0])
        write_text_atomically(Path(config.output) / TABLE, text + "\n")
    return text
