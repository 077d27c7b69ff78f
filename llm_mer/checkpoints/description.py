"""A checkpoint describes itself: what it was trained on, how to prompt it, and where its backbone is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_mer import __version__
from llm_mer.adapters import AdapterReference, check_reference
from llm_mer.checkpoints.run_differences import RunSetup
from llm_mer.errors import UserError, first_line
from llm_mer.model.configuration_mer import MerConfig, build_adapter_config
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.json_files import read_json

TRAJECTORIES = "trajectories.jsonl"
"""Positions of the vectors that an adapter tracks at the start and after each epoch, saved beside the checkpoint."""
DESCRIPTION_FILE = "llm_mer.json"
FORMAT_VERSION = 1
REQUIRED: dict[str, tuple[str, ...]] = {
    "model": ("adapter", "adapter_config", "text_source"),
    "processor": ("tasks", "prompts", "feature_sizes", "statistics", "num_pseudo_tokens"),
}
"""Required keys."""


@dataclass
class BackboneReference:
    """Where the frozen backbone is.

    Attributes:
        name: hub name, or the name of the local folder it came from.
        folder: where a copy lies, relative to the checkpoint or to its parent; None when it was not copied.
        fingerprint: SHA-256 of its configuration and weights, None for a hub name.
        quantization, dtype: how it was loaded for training.
    """

    name: str
    folder: str | None = None
    fingerprint: str | None = None
    quantization: str = "none"
    dtype: str = "float32"


@dataclass
class CheckpointDescription:
    """The content of ``llm_mer.json``.

    Attributes:
        model: :class:`~llm_mer.model.configuration_mer.MerConfig` as plain values (backbone configuration included).
        processor: :meth:`MerProcessor.to_dict`. backbone: None for an adapter alone.
        data: fingerprint, counts and feature settings of the training data.
        baselines: ``{task: {"truths": …}}`` statistics for the trivial baselines: label counts or score mean.
        shift_probability: ``{task: p0}`` of the Dialogical Emotion Decoder, from the training dialogues.
        context: window size and direction. training: loss weights, seed, LoRA. versions: of the libraries.
        run: everything that determines the result, every option included; None in a checkpoint of an earlier version.
        merged: language, sharing and quantisation of the LoRA that is in the backbone's weights; None where LoRA is apart.
        adapter: where the adapter's class came from; None in checkpoints older than this entry.
    """

    model: dict[str, Any]
    processor: dict[str, Any]
    backbone: BackboneReference | None
    data: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    shift_probability: dict[str, float] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    run: RunSetup | None = None
    merged: dict[str, Any] | None = None
    adapter: AdapterReference | None = None
    format: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write ``llm_mer.json``, and ``config.json`` for transformers' ``AutoConfig``.

        Local paths are meaningless on other machines and are left out.
        """
        written = self if self.run is None else replace(self, run=self.run.without_paths())
        write_json_atomically(folder / DESCRIPTION_FILE, asdict(written))
        write_json_atomically(folder / "config.json", MerConfig(**self.model).to_dict())

    @classmethod
    def load(cls, folder: Path) -> CheckpointDescription:
        """Read ``llm_mer.json``. Raises :class:`UserError` when the folder is no llm_mer checkpoint."""
        path = folder / DESCRIPTION_FILE
        entry = read_json(path, f"{folder}: no {DESCRIPTION_FILE}; it is not a checkpoint written by finetune.py")
        found = entry.get("format") if isinstance(entry, dict) else None
        if found != FORMAT_VERSION:
            raise UserError(f"{path}: format {found!r}, this version reads {FORMAT_VERSION}")
        try:
            for part, names in REQUIRED.items():
                lacking = [name for name in names if name not in entry[part]]
                if lacking:
                    raise KeyError(f"{part} has no {', '.join(lacking)}")
            if entry["backbone"] is not None:
                entry["backbone"] = BackboneReference(**entry["backbone"])
            if entry.get("adapter") is not None:
                entry["adapter"] = AdapterReference(**entry["adapter"])
                if entry["adapter"].name != entry["model"]["adapter"]:
                    raise KeyError(f"adapter is {entry['adapter'].name!r}, the model's {entry['model']['adapter']!r}")
            if entry.get("run") is not None:
                entry["run"] = RunSetup(**entry["run"])
            return cls(**entry)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged or edited: {error}") from None


def stack_versions() -> dict[str, str]:
    """Versions of what a checkpoint depends on."""
    required = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "xlstm", "numpy")
    names = (*required, "deepspeed", "bitsandbytes", "liger-kernel")
    found = {"llm_mer": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_description(description: CheckpointDescription, path: Path) -> None:
    """Build what can be built without weights: the adapter's configuration, tasks and prompts.

    No code is imported for the checkpoint's sake but that of an installed package (:mod:`llm_mer.adapters.registry`).

    Raises:
        UserError: naming ``path`` and what is wrong in it.
    """
    try:
        if description.adapter is not None:
            check_reference(description.adapter)
        build_adapter_config(description.model["adapter"], description.model["adapter_config"] or {})
        MerProcessor.from_dict(description.processor, None)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged or edited: {error!r}") from None
    except ValueError as error:
        raise UserError(f"{path}: {first_line(error)}") from None
