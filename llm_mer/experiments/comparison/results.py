"""The record of one training of a comparison, and the settings its predictions depend on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.run_differences import RunSetup, compare_settings, run_differences
from llm_mer.errors import UserError
from llm_mer.evaluation.rows import PREDICTIONS
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.storage.json_files import read_json_object

RUN = "run.json"


@dataclass
class RunSettings:
    """The settings that the predictions of a run depend on. A finished run is reused only if all are the same.

    Attributes:
        options: of the training, :meth:`~llm_mer.training.run_config.RunConfig.options`.
    """

    options: dict[str, dict[str, Any]]
    split: str
    conditions: list[str]
    dialogue_decoder: bool
    data_fingerprint: str
    questions_sha256: str
    backbone: dict[str, Any] | None

    def setup(self) -> RunSetup:
        """The settings that the training depends on."""
        return RunSetup(self.options, self.data_fingerprint, self.questions_sha256, self.backbone)

    def differences(self, now: RunSettings) -> list[str]:
        """``split was 'valid', now 'test'`` for everything in which a run asked for now differs."""
        scored = ("split", "conditions", "dialogue_decoder")
        found = run_differences(self.setup(), now.setup())
        found += compare_settings({n: getattr(self, n) for n in scored}, {n: getattr(now, n) for n in scored})
        return [f"{d.name} was {d.before!r}, now {d.now!r}" for d in found]


@dataclass
class RunResult(RunSettings):
    """What is recorded of one training beside its predictions."""

    system: str
    seed: int
    modalities: list[str]
    parameters: dict[str, int]
    train_questions: int
    train_seconds: float
    steps: int
    milliseconds_per_answer: float
    shift_probability: dict[str, float]
    tasks: dict[str, dict[str, Any]]
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    """:class:`~llm_mer.adapters.diagnostics.DiagnosticInfo` of the adapter, as plain values."""
    predictions_sha256: str | None = None
    """Of the file of its predictions; None in runs older than this entry."""
    fold: str | None = None
    """The fold it was trained and tested on; None without folds."""
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task, the number of training questions of each class, or the mean of the training scores."""


def read_result(path: Path) -> RunResult:
    """A finished run's ``run.json``.

    Raises:
        UserError: one that another version of the program wrote, or predictions beside it that are not those of the run.
    """
    try:
        entry = read_json_object(path)
    except UserError as error:
        raise UserError(f"{path} is incomplete ({error}); delete {path.parent}") from None
    names = {f.name for f in dataclasses.fields(RunResult)}
    differing = sorted((names ^ set(entry)) - {"predictions_sha256", "fold", "baselines"})
    if differing:
        raise UserError(
            f"{path} was written by another version of this program ({', '.join(differing)}); name another --output or "
            f"delete {path.parent}"
        )
    result = RunResult(**entry)
    answers = path.parent / PREDICTIONS
    if result.predictions_sha256 is not None and (
        not answers.is_file() or file_sha256(answers) != result.predictions_sha256
    ):
        raise UserError(
            f"{answers} is not what {path.name} was written with: it was cut off, changed or removed; delete {path.parent} "
            "to have the run again"
        )
    return result
