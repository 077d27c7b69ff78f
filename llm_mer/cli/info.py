"""``llm-mer info``: describing a checkpoint or a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llm_mer.errors import UserError
from llm_mer.storage.json_text import dump_json

EXAMPLES = ("llm-mer info --path runs/quickstart/egmf", "llm-mer info --path runs/quickstart/features")


@dataclass
class Options:
    """Options of ``llm-mer info``."""

    path: str = field(default="", metadata={"help": "a checkpoint or a store", "required": True})
    write_checksums: bool = field(
        default=False,
        metadata={"help": "record size and SHA-256 of a checkpoint's files, if an earlier version did not"},
    )


def run(options: Options) -> str:
    """``llm_mer.json`` of a checkpoint or ``store.json`` of a store, without the long lists.

    Raises:
        UserError: neither exists, or ``write_checksums`` for files that are recorded already.
    """
    from llm_mer.checkpoints.description import DESCRIPTION_FILE, CheckpointDescription
    from llm_mer.data.store import STORE_FILE, UtteranceStore

    folder = Path(options.path)
    if options.write_checksums:
        _record_files(folder)
    if (folder / DESCRIPTION_FILE).is_file():
        description = CheckpointDescription.load(folder)
        backbone = description.backbone
        shown = {
            "adapter": description.model["adapter"],
            "backbone": None if backbone is None else backbone.name,
            "quantization": None if backbone is None else backbone.quantization,
            "tasks": list(description.processor["tasks"]),
            "feature_sizes": description.processor["feature_sizes"],
            "training": description.training,
            "data": {k: v for k, v in description.data.items() if k != "features"},
            "features": description.data.get("features"),
            "context": description.context,
            "versions": description.versions,
        }
        return dump_json(shown, indent=1)
    if (folder / STORE_FILE).is_file():
        info = UtteranceStore.open(folder).info
        shown = {
            "utterances": info.counts,
            "feature_sizes": info.feature_sizes,
            "fingerprint": info.fingerprint,
            "description": info.description,
        }
        return dump_json(shown, indent=1)
    raise UserError(f"{folder}: neither a checkpoint ({DESCRIPTION_FILE}) nor a store ({STORE_FILE})")


def _record_files(folder: Path) -> None:
    from llm_mer.checkpoints.description import DESCRIPTION_FILE
    from llm_mer.checkpoints.integrity import CHECKSUMS_FILE, COMPLETION_MARKER, verify_checkpoint, write_checksums

    if not (folder / DESCRIPTION_FILE).is_file():
        raise UserError(f"--write_checksums: {folder} is not a checkpoint, it has no {DESCRIPTION_FILE}")
    for record in (CHECKSUMS_FILE, COMPLETION_MARKER):
        if (folder / record).is_file():
            raise UserError(f"--write_checksums: {folder / record} already records the files")
    write_checksums(folder)
    verify_checkpoint(folder)
