"""``llm-mer card``: a checkpoint's model card."""

from __future__ import annotations

from dataclasses import dataclass, field

EXAMPLES = (
    "llm-mer card runs/quickstart/egmf",
    "llm-mer card runs/mine --evaluations runs/mine/evaluation results/meld --license apache-2.0",
)


@dataclass
class Options:
    """Options of ``llm-mer card``."""

    folder: str = field(default="", metadata={"help": "folder of the checkpoint", "required": True, "positional": True})
    evaluations: list[str] = field(
        default_factory=list,
        metadata={"help": "folders with evaluation.json (default: every one under FOLDER/evaluation)"},
    )
    license: str | None = field(default=None, metadata={"help": "licence of the weights, by its name on the hub"})
    output: str | None = field(default=None, metadata={"help": "file to write (default: FOLDER/README.md)"})


def run(options: Options) -> str:
    """Write the card; returns its path."""
    from pathlib import Path

    from llm_mer.reporting.model_card import model_card
    from llm_mer.storage.atomic_files import write_text_atomically
    from llm_mer.storage.system_errors import naming_path

    path = Path(options.folder) / "README.md" if options.output is None else Path(options.output)
    text = model_card(Path(options.folder), [Path(place) for place in options.evaluations], options.license)
    with naming_path(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text)
    return str(path)
