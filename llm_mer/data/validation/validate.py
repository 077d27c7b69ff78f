"""``llm-mer validate``: checking a data set in one pass over its utterances."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.data.feature_settings import DESCRIPTORS, steps_per_second
from llm_mer.data.schema import Utterance
from llm_mer.data.sources import read_source, split_source
from llm_mer.data.store import UtteranceStore
from llm_mer.data.validation.checks import Inspection
from llm_mer.data.validation.findings import ADVICE, ERROR, Finding, ValidationReport
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task
from llm_mer.storage.json_text import dump_json


@dataclass
class ValidateConfig:
    """Options of ``llm-mer validate``."""

    data: str = field(
        default="", metadata={"help": "a store's folder, or FORMAT:PATH", "required": True, "positional": True}
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "tasks whose labels these are (default: for each target the built-in task that fits best)"},
    )
    json: str | None = field(default=None, metadata={"help": "file to write the same findings to"})


def check_utterances(utterances: Iterable[Utterance], source: str, inspection: Inspection) -> ValidationReport:
    """Check utterances in one pass; if reading stops half-way, that is a finding too.

    Raises:
        UserError: data that cannot be read at all.
    """
    broken: list[Finding] = []
    try:
        for utterance in utterances:
            inspection.update(utterance)
    except UserError as error:
        if not inspection.counts:
            raise
        broken = [Finding(ERROR, "unreadable", "", 1, [str(error)], ADVICE["unreadable"])]
    if not inspection.counts:
        raise UserError(f"{source}: no utterances to check")
    return ValidationReport(source, inspection.counts, [*broken, *inspection.findings()])


def _rates(description: dict[str, Any]) -> dict[str, float]:
    """Steps per second of features made by ``llm-mer extract``, where its options define them."""
    settings = description.get("features")
    if not isinstance(settings, dict):
        return {}
    rates = steps_per_second(settings)
    if settings.get("audio") not in DESCRIPTORS:  # an encoder may give one vector for the whole clip
        rates.pop("audio", None)
    return rates


def validate(config: ValidateConfig) -> ValidationReport:
    """Check a store, or the files of a public data set, in one pass.

    Returns:
        The report; the command line prints it and exits with its ``exit_code``: 0, 1 with warnings, 2 with errors.

    Raises:
        UserError: an unknown task or format, or data that cannot be opened.
    """

    if config.json and not Path(config.json).parent.is_dir():
        raise UserError(f"json: {Path(config.json).parent}: no such folder")
    tasks = [get_task(name) for name in config.tasks] or None
    public = split_source(config.data)
    utterances: Iterable[Utterance]
    total = None
    if public is not None:
        utterances, inspection = read_source(*public), Inspection(tasks)
    else:
        store = UtteranceStore.open(config.data)
        info = store.info
        tables = [store.split(split) for split in info.counts]
        utterances, total = itertools.chain.from_iterable(tables), sum(info.counts.values())
        inspection = Inspection(tasks, info.feature_sizes, info.feature_names, _rates(info.description))
    with track_progress(utterances, total=total, description="validate", unit="utterance") as bar:
        report = check_utterances(bar, config.data, inspection)
    if config.json:
        text = dump_json(report.to_dict(), indent=1)
        Path(config.json).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    return report
