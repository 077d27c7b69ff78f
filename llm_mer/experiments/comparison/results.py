"""What one training left beside its predictions, and what those come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.errors import UserError

RUN = "run.json"


@dataclass
class RunSettings:
    """What the predictions of a run come from. A finished run is used again only where all of it is the same."""

    arguments: list[str]
    split: str
    conditions: list[str]
    dialogue_decoder: bool
    config_sha256: str
    data_fingerprint: str

    def differences(self, now: RunSettings) -> list[str]:
        """``split was 'valid', now 'test'`` for everything in which a run asked for now differs."""
        had, wanted = _by_option(self.arguments), _by_option(now.arguments)
        found = [(name, had.get(name), wanted.get(name)) for name in {**had, **wanted} if had.get(name) != wanted.get(name)]
        for entry in dataclasses.fields(RunSettings):
            before, after = getattr(self, entry.name), getattr(now, entry.name)
            if before != after and entry.name != "arguments":
                cut = 12 if entry.name in ("config_sha256", "data_fingerprint") else None
                found.append((entry.name, before[:cut] if cut else before, after[:cut] if cut else after))
        return [f"{name} was {before!r}, now {after!r}" for name, before, after in found]


def _by_option(arguments: Sequence[str]) -> dict[str, str]:
    """Options by name. Where a run lies is none of them: a folder may be moved."""
    options = {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=False)}
    options.pop("output_dir", None)
    return options


@dataclass
class RunResult(RunSettings):
    """What one training left beside its predictions."""

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


def read_result(path: Path) -> RunResult:
    """A finished run's ``run.json``. Raises :class:`UserError` for one that another version of the program wrote."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not whole ({error}); delete {path.parent}") from error
    names = {f.name for f in dataclasses.fields(RunResult)}
    odd = sorted(names ^ set(entry))
    if odd:
        raise UserError(
            f"{path} was written by another version of this program ({', '.join(odd)}); name another --output or delete "
            f"{path.parent}"
        )
    return RunResult(**entry)
