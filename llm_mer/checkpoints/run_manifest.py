"""The manifest of a run: all that its result came from, and the result, so that it can be explained and run again."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.description import CheckpointDescription, stack_versions
from llm_mer.checkpoints.portable_paths import make_paths_portable, resolve_portable_paths
from llm_mer.checkpoints.run_differences import OPTION_GROUPS, RunSetup, without_folders
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.fingerprints import safetensors_sha256
from llm_mer.storage.json_files import read_json

MANIFEST = "run_manifest.json"
MANIFEST_FORMAT = 1
WEIGHT_FILES = ("adapter_model.safetensors", "model.safetensors")
SECRETS = ("hub_token",)


@dataclass
class Hardware:
    """What computed. ``memory_gib`` and those of the GPUs are GiB; ``threads`` are torch's in each process."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: list[str]
    device: str
    mixed_precision: str
    threads: int
    processes: int


@dataclass
class GitState:
    """The checkout that the code ran from. ``changes_sha256`` is over what differs from the commit, None for nothing."""

    commit: str
    changes_sha256: str | None = None


@dataclass
class RunManifest:
    """The content of ``run_manifest.json``.

    Attributes:
        command: the command line, tokens blanked out.
        options: ``{"data" | "model" | "training" | "adapter": {option: value}}``, every one as given by YAML file, command
            line and defaults, before this machine's defaults are filled in.
        data: ``source`` and ``fingerprint``. questions_sha256: over tasks and prompt templates, files of one's own included.
        backbone: ``name`` and ``fingerprint``; None for an adapter alone.
        git: None where the code is no checkout.
        started, finished: UTC; ``finished`` is None until the run is complete. steps: of the optimiser.
        metrics: the final evaluation on ``eval_split``, without its timings; None where a metric is no number.
        weights_sha256: over names, shapes and values of the saved weights.
    """

    command: list[str]
    options: dict[str, dict[str, Any]]
    data: dict[str, Any]
    questions_sha256: str
    backbone: dict[str, Any] | None
    versions: dict[str, str]
    python: str
    platform: str
    hardware: Hardware
    git: GitState | None
    started: str
    finished: str | None = None
    steps: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    weights_sha256: str | None = None
    format: int = MANIFEST_FORMAT

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.options["training"]["seed"])

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.finished is not None

    def finish(self, folder: Path, metrics: dict[str, float], steps: int) -> None:
        """Note the result and write the manifest into ``folder``."""
        timings = ("runtime", "per_second")
        kept = {name: float(value) for name, value in metrics.items() if not name.endswith(timings)}
        self.metrics = {name: value if math.isfinite(value) else None for name, value in kept.items()}
        self.steps, self.weights_sha256, self.finished = steps, weights_digest(folder), now()
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write ``run_manifest.json``, completely or not at all; its paths go from ``folder`` (:mod:`.portable_paths`)."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"command": make_paths_portable(self.command, folder), "options": make_paths_portable(self.options, folder)}
        write_json_atomically(folder / MANIFEST, {**asdict(self), **paths})

    @classmethod
    def load(cls, folder: Path) -> RunManifest:
        """Read ``run_manifest.json``, its paths as they lie now from ``folder``.

        Raises:
            UserError: there is none, or one that cannot be read.
        """
        path = folder / MANIFEST
        missing = f"{folder}: no {MANIFEST}; name a folder that finetune.py of this version wrote"
        manifest = cls.from_dict(read_json(path, missing), str(path))
        manifest.command = resolve_portable_paths(manifest.command, folder)
        manifest.options = resolve_portable_paths(manifest.options, folder)
        return manifest

    @classmethod
    def from_dict(cls, entry: Any, where: str) -> RunManifest:
        """From plain values. Raises :class:`UserError` naming ``where`` for another format or missing fields."""
        found = entry.get("format") if isinstance(entry, dict) else None
        if found != MANIFEST_FORMAT:
            raise UserError(f"{where}: format {found!r}, this version reads {MANIFEST_FORMAT}")
        try:
            values = {**entry, "hardware": Hardware(**entry["hardware"])}
            values["git"] = None if entry["git"] is None else GitState(**entry["git"])
            manifest = cls(**values)
            if not isinstance(manifest.seed, int) or set(manifest.options) != set(OPTION_GROUPS):
                raise KeyError("options")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: damaged or edited: {error}") from None
        return manifest

    def setup(self) -> RunSetup:
        """What the result follows from."""
        return RunSetup(self.options, str(self.data.get("fingerprint")), self.questions_sha256, self.backbone)

    def without_paths(self) -> RunManifest:
        """The same manifest without the folders of one machine (:func:`without_folders`), to be given away."""
        return replace(self, command=without_folders(self.command), options=without_folders(self.options))

    def surroundings(self) -> dict[str, Any]:
        """Versions, hardware and code, flat."""
        flat: dict[str, Any] = {"python": self.python, "platform": self.platform, **self.versions}
        flat |= asdict(self.hardware)
        flat |= {"git commit": None if self.git is None else self.git.commit[:12]}
        flat |= {"uncommitted changes": None if self.git is None else (self.git.changes_sha256 or "none")[:12]}
        return flat


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest beside a checkpoint as plain values, without folders of one machine; None where there is none."""
    return asdict(RunManifest.load(folder).without_paths()) if (folder / MANIFEST).is_file() else None


def begin(
    command: Sequence[str],
    setup: RunSetup,
    description: CheckpointDescription,
    device: str,
    mixed_precision: str,
    processes: int,
) -> RunManifest:
    """The manifest of a run that is about to train."""
    return RunManifest(
        command=without_secrets(command),
        options=setup.options,
        data={name: description.data.get(name) for name in ("source", "fingerprint")},
        questions_sha256=setup.questions_sha256,
        backbone=setup.backbone,
        versions=stack_versions(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        hardware=measure_hardware(device, mixed_precision, processes),
        git=git_state(Path(__file__).resolve().parent),
        started=now(),
    )


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def without_secrets(command: Sequence[str]) -> list[str]:
    """The command line with tokens blanked out."""
    shown: list[str] = []
    secret = False
    for word in command:
        name, separator, _ = word.partition("=")
        own = name.removeprefix("--").replace("-", "_") in SECRETS and name.startswith("--")
        shown.append("…" if secret else f"{name}=…" if own and separator else word)
        secret = own and not separator
    return shown


def measure_hardware(device: str, mixed_precision: str, processes: int) -> Hardware:
    """The machine as this process sees it."""
    import torch

    cpu = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append(f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
    return Hardware(cpu, cores, round(pages / 2**30, 1), gpus, device, mixed_precision, torch.get_num_threads(), processes)


def git_state(package: Path) -> GitState | None:
    """The checkout that holds ``package``; None where git is missing or does not track it.

    Changes are those of tracked files anywhere in the checkout, and new files in the package that are not ignored.
    """

    def git(*arguments: str) -> bytes | None:
        try:
            result = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout if result.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    changes = git("diff", "--no-ext-diff", "--no-color", "--binary", "HEAD")
    new = git("ls-files", "--others", "--exclude-standard", "-z", ".")
    if commit is None or changes is None or new is None:
        return None
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, new.split(b"\0"))):
        digest.update(name + b"\0")
        path = package / os.fsdecode(name)
        digest.update(path.read_bytes() if path.is_file() else b"")
    return GitState(commit.decode().strip(), digest.hexdigest() if changes or new else None)


def weights_file(folder: Path) -> Path | None:
    """The file of trained weights in a checkpoint; None where there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def weights_digest(folder: Path) -> str | None:
    """SHA-256 over names, types, shapes and bytes of a checkpoint's weights in the order of their names."""
    path = weights_file(folder)
    return None if path is None else safetensors_sha256(path)
