"""``llm-mer push``: a checkpoint to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field

EXAMPLES = ("llm-mer push runs/mine someone/mer-egmf", "llm-mer push runs/mine someone/mer-egmf --public --license mit")


@dataclass
class Options:
    """Options of ``llm-mer push``."""

    folder: str = field(default="", metadata={"help": "folder of the checkpoint", "required": True, "positional": True})
    repository: str = field(
        default="",
        metadata={"help": "OWNER/NAME on the hub, created if it does not exist", "required": True, "positional": True},
    )
    public: bool = field(default=False, metadata={"help": "readable by everyone; without it the repository is private"})
    evaluations: list[str] = field(
        default_factory=list,
        metadata={"help": "folders with evaluation.json for the card (default: every one under FOLDER/evaluation)"},
    )
    license: str | None = field(default=None, metadata={"help": "licence of the weights, by its name on the hub"})


def run(options: Options) -> str:
    """Push; returns the commit's URL."""
    from pathlib import Path

    from llm_mer.reporting.hub_upload import push_to_hub

    return push_to_hub(
        options.folder,
        options.repository,
        private=not options.public,
        evaluations=[Path(place) for place in options.evaluations],
        license=options.license,
    )
