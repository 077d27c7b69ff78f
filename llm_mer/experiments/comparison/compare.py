"""``llm-mer compare``: adapters × ablations × seeds on one backbone and identical data order; one table."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.experiments.comparison.idle_rows import without_idle_rows
from llm_mer.experiments.comparison.results import RUN, RunResult, RunSettings, read_result
from llm_mer.experiments.comparison.runs import train_and_predict, training_arguments
from llm_mer.experiments.comparison.systems import System, check_metrics, plan
from llm_mer.experiments.comparison.table import Comparison, markdown, tabulate
from llm_mer.experiments.options import CompareConfig
from llm_mer.resources.files import resolve_file

logger = logging.getLogger(__name__)
TABLE = "comparison.md"
COMPARISON = "comparison.json"


def compare(config: CompareConfig) -> tuple[Comparison, list[System]]:
    """Do what is not done yet; the comparison, also written as ``comparison.json``, and the systems that were run.

    Raises:
        UserError: options or data that do not fit one another, or finished runs of other options.
    """
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.run_data import prepare_data

    config = replace(config, config=resolve_file(config.config))
    if not Path(config.config).is_file():
        raise UserError(f"--config {config.config}: no such file")
    check_metrics(config)
    systems, folder = plan(config), Path(config.output)
    data, _, _, _ = parse_arguments(training_arguments(config, systems[0], config.seeds[0], folder))
    prepared = prepare_data(data, with_prompts=False)
    if config.dialogue_decoder and all(task.kind != "classification" for task in prepared.tasks):
        raise UserError("--dialogue_decoder: no task has classes to decode")
    systems = without_idle_rows(config, systems, prepared)
    digest = hashlib.sha256(Path(config.config).read_bytes()).hexdigest()
    shared = (config.split, list(config.conditions), config.dialogue_decoder, digest, prepared.fingerprint)
    del prepared
    done: dict[Path, RunResult] = {}
    wanted: dict[Path, RunSettings] = {}
    for system, seed in product(systems, config.seeds):
        place = folder / system.folder(seed)
        wanted[place] = RunSettings(training_arguments(config, system, seed, place), *shared)
        if (place / RUN).is_file():
            done[place] = read_result(place / RUN)
            odd = done[place].differences(wanted[place])
            if odd:
                raise UserError(
                    f"{place} holds a run with other options: {'; '.join(odd)}; name another --output or delete it"
                )
    runs: dict[str, list[RunResult]] = {}
    for number, (system, seed) in enumerate(product(systems, config.seeds), start=1):
        place = folder / system.folder(seed)
        before = " (done before)" if place in done else ""
        logger.warning("[%d/%d] %s, seed %d%s", number, len(wanted), system.name, seed, before)
        if not before:
            with redirect_stdout(sys.stderr):  # the trainer's log; standard output is the table's
                done[place] = train_and_predict(config, system, seed, place, wanted[place])
        runs.setdefault(system.name, []).append(done[place])
    comparison = tabulate(config, systems, runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPARISON).write_text(json.dumps(asdict(comparison), ensure_ascii=False, indent=1), encoding="utf-8")
    return comparison, systems


def run(config: CompareConfig) -> str:
    """``llm-mer compare``: the table, also written as ``comparison.md``."""
    text = markdown(compare(config)[0])
    (Path(config.output) / TABLE).write_text(text + "\n", encoding="utf-8")
    return text
