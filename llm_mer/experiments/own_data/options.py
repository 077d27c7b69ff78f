"""Options of ``llm-mer train --manifest``, beside those of the training itself; imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from llm_mer.data.feature_settings import FeatureSettings
from llm_mer.prompting.languages import LANGUAGES

SPLIT_BY = ("auto", "speaker", "dialogue_id", "clip")


@dataclass
class OwnDataOptions(FeatureSettings):
    """Options of ``llm-mer train --manifest``; any other one is an option of the training."""

    manifest: str = field(default="", metadata={"help": "table of your clips: .csv, .tsv or .jsonl, one clip a row"})
    output_dir: str = field(
        default="", metadata={"help": "folder of all that is made (default: runs/NAME of the table's file name)"}
    )
    targets: list[str] = field(
        default_factory=list, metadata={"help": "columns to be learnt (default: every one that can be)"}
    )
    classes: list[str] = field(
        default_factory=list,
        metadata={"help": "columns whose values are labels, where numbers or many values leave it open"},
    )
    range: list[str] = field(
        default_factory=list, metadata={"help": "NAME=LOW:HIGH …: columns of scores and their ranges, e.g. valence=0:100"}
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "tasks of your own (YAML files: words and question in each language) or built-in ones, for columns"
        },
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=FIELD …: what a column is (id, clip, video, audio, text, …), or NAME=ignore"},
    )
    language: str | None = field(
        default=None, metadata={"help": "of rows without a transcript to tell it by", "choices": list(LANGUAGES)}
    )
    split_by: str = field(
        default="auto",
        metadata={"help": "what is kept apart between splits, without a column split", "choices": list(SPLIT_BY)},
    )
    split_seed: int = field(default=0, metadata={"help": "of the splits that are drawn"})
    workers: int = field(default=2, metadata={"help": "processes that extract features"})
    on_bad_media: str = field(
        default="drop",
        metadata={"help": "a clip that cannot be decoded is dropped, or kept without it", "choices": ["drop", "missing"]},
    )
    dry_run: bool = field(default=False, metadata={"help": "show the plan, and do nothing"})
    write_tasks: str = field(
        default="", metadata={"help": "with --dry_run: folder for the task files, to be changed and given as --tasks"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "let another plan take the place of the one in the output folder"}
    )

    @property
    def settings(self) -> FeatureSettings:
        """The settings that define the features."""
        return FeatureSettings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(FeatureSettings)})
