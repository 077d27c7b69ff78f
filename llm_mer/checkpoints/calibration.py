"""Temperatures of a checkpoint's answers and weights of their pool: ``calibration.json`` beside the weights of the model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.integrity import CALIBRATION_FILE, CHECKSUMS_FILE, known_weights_digest, write_checksums
from llm_mer.checkpoints.weights import FUSION_ADAPTER_FILE
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.fingerprints import json_sha256, safetensors_sha256
from llm_mer.storage.json_files import read_json_object

CALIBRATION_SPLIT = "valid"
"""The only split that temperatures are fitted on."""


def answering_weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights that answer; of a merged checkpoint, over its adapter's and the backbone with LoRA inside."""
    digest = known_weights_digest(folder)
    if digest is not None or not (folder / FUSION_ADAPTER_FILE).is_file():
        return digest
    backbone = CheckpointDescription.load(folder).backbone
    parts = [safetensors_sha256(folder / FUSION_ADAPTER_FILE), None if backbone is None else backbone.fingerprint]
    return json_sha256(parts, sort_keys=True, ensure_ascii=True)


@dataclass(frozen=True)
class Temperature:
    """That of one task in one language: ``n`` answers it was fitted on, and their mean NLL before and after (nats)."""

    task: str
    language: str
    temperature: float
    n: int
    nll_before: float
    nll_after: float


@dataclass(frozen=True)
class Pool:
    """What each distribution weighs in the pool of one task in one language, fitted on ``n`` answers.

    Attributes:
        weights: by name, ``scored``, ``read_out`` or ``head``; one of 0 was found to tell nothing beside the others.
        nll_alone: mean NLL (nats) of each alone, scaled as fits it best. nll: of the pool.
    """

    task: str
    language: str
    weights: dict[str, float]
    n: int
    nll_alone: dict[str, float]
    nll: float


@dataclass(frozen=True)
class Calibration:
    """The content of ``calibration.json``.

    Attributes:
        weights_sha256: of the weights whose answers these are for. data: fingerprint of what they were fitted on.
        temperatures: one a task and language; answers in another language stay as they are.
        pools: one a task and language for which the checkpoint gives more than one distribution.
        precision: what the language model computed with when they were fitted; None for an adapter alone, and in files of
            earlier versions.
    """

    weights_sha256: str
    data: str
    temperatures: tuple[Temperature, ...]
    pools: tuple[Pool, ...] = ()
    precision: str | None = None

    def by_question(self) -> dict[tuple[str, str], float]:
        """``{(task, language): temperature}``."""
        return {(entry.task, entry.language): entry.temperature for entry in self.temperatures}

    def pool_weights(self) -> dict[tuple[str, str], dict[str, float]]:
        """``{(task, language): {distribution: weight}}``."""
        return {(entry.task, entry.language): entry.weights for entry in self.pools}

    def other_precision(self, precision: str | None) -> str | None:
        """What to say where the answers are computed in another precision than those they were fitted on; None else."""
        if self.precision is None or self.precision == precision:
            return None
        return (
            f"the temperatures were fitted on answers in {self.precision}, and these are in {precision}; for their own, run "
            f"`llm-mer calibrate --dtype {precision}`"
        )

    def save(self, folder: Path) -> None:
        """Write ``calibration.json``, and its digest into the checkpoint's checksums where it has some."""
        has_checksums = (folder / CHECKSUMS_FILE).is_file()
        if has_checksums:
            # Without it first: a kill in between leaves a checkpoint whose every recorded digest is right.
            write_checksums(folder, without=CALIBRATION_FILE)
        write_json_atomically(folder / CALIBRATION_FILE, asdict(self))
        if has_checksums:
            write_checksums(folder)

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Read it back; None where the checkpoint has none.

        Raises:
            UserError: damaged, or fitted for other weights than those beside it.
        """
        path = folder / CALIBRATION_FILE
        if not path.is_file():
            return None
        entry = read_json_object(path)
        try:
            found = tuple(Temperature(**values) for values in entry["temperatures"])
            pools = tuple(Pool(**values) for values in entry.get("pools", []))
            calibration = cls(str(entry["weights_sha256"]), str(entry["data"]), found, pools, entry.get("precision"))
            for one in found:
                if not (math.isfinite(one.temperature) and one.temperature > 0):
                    raise ValueError(f"temperature of task {one.task!r} is {one.temperature!r}, it must be above 0")
            for pool in pools:
                for name, weight in pool.weights.items():
                    if not (math.isfinite(weight) and weight >= 0):
                        raise ValueError(f"the weight of {name} of task {pool.task!r} is {weight!r}, it must be 0 or more")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged or edited: {error}") from None
        digest = answering_weights_digest(folder)
        if calibration.weights_sha256 != digest:
            raise UserError(
                f"{path}: fitted for weights of SHA-256 {calibration.weights_sha256[:12]}…, those beside it have "
                f"{str(digest)[:12]}…; run `llm-mer calibrate` again, or answer with --calibration false"
            )
        return calibration
