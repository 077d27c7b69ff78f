"""Options of ``llm-mer evaluate``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_mer.checkpoints.precision import precision_option
from llm_mer.data.long_clips import long_clips_as_trained_option, window_overlap_option, windows_option
from llm_mer.errors import UserError


def check_least(options: object, least: Mapping[str, int]) -> None:
    """Raises :class:`UserError` for an option below its least value, before anything is trained or answered for it."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise UserError(f"--{name} {getattr(options, name)}: it must be at least {bound}")


def check_fold_is_named(folds: str | None, fold: str | None) -> None:
    """Raises :class:`UserError` for one of the two without the other."""
    if (folds is None) != (fold is None):
        given, lacks = ("folds", "fold") if fold is None else ("fold", "folds")
        raise UserError(f"--{given} {folds or fold} without --{lacks}; a fold is named by both")


def check_seeds_differ(seeds: Sequence[int]) -> None:
    """Raises :class:`UserError` for a seed given twice, which would count as two runs that agree in everything."""
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))} names a seed twice; their spread would be too small")


@dataclass
class EvaluateConfig:
    """Options of ``llm-mer evaluate``."""

    checkpoint: str = field(
        default="",
        metadata={
            "help": "folder written by finetune.py; without one, --backbone, --tasks and --prompts ask an untuned model"
        },
    )
    data: list[str] = field(
        default_factory=list, metadata={"help": "a store, or FORMAT:PATH; several are evaluated in turn", "required": True}
    )
    output: str = field(
        default="",
        metadata={
            "help": "folder of evaluation.json and predictions.jsonl (default: CHECKPOINT/evaluation); several stores each "
            "have a folder in it, named like the store"
        },
    )
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "CHECKPOINT holds a folder seed-N for each of these seeds (default: all it holds); mean ± std"},
    )
    folds: str | None = field(
        default=None, metadata={"help": "file of folds: the parts of one of them are read in place of the splits of --data"}
    )
    fold: str | None = field(default=None, metadata={"help": "which of --folds, by its name"})
    split: str = field(default="test", metadata={"help": "which split"})
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "styles, files or folders of prompts, for an untuned --backbone"}
    )
    examples: int = field(
        default=0,
        metadata={
            "help": "so many answered utterances of --examples_split before each prompt of an untuned --backbone "
            "(few-shot), drawn by --examples_seed, labels in turn"
        },
    )
    examples_split: str = field(default="train", metadata={"help": "where --examples come from"})
    examples_seed: int = field(default=0, metadata={"help": "draws --examples; the scored rows stay"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    limit: int | None = field(default=None, metadata={"help": "only so many utterances, drawn over languages by --seed"})
    conditions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "also score under conditions: shuffle:audio,vision (taken from other utterances), shuffle:transcript, "
            "shuffle:features, without:text (missing), without:adapter (no pseudo tokens), subsets (every subset of the "
            "modalities), or damage: missing:RATE (steps and words), "
            "drop_frames:RATE, word_errors:RATE, audio_snr:DB (white noise)"
        },
    )
    by: list[str] = field(
        default_factory=list,
        metadata={
            "help": "also score by length of the transcript, turn of the conversation, distance from the training "
            "data: length turn distance"
        },
    )
    generate: bool = field(default=False, metadata={"help": "also answer by free generation, unparseable rate measured"})
    answer: str = field(
        default="scored",
        metadata={
            "help": "what answers: the scored answers; the read-out of a checkpoint that has one; pooled, these and the "
            "adapter's own head by the weights of `llm-mer calibrate`; or all that there are, each in rows of its own",
            "choices": ["scored", "read_out", "pooled", "all"],
        },
    )
    dialogue_decoder: str = field(
        default="none",
        metadata={
            "help": "also decode whole dialogues (Dialogical Emotion Decoder)",
            "choices": ["none", "offline", "online"],
        },
    )
    score_statistic: str = field(
        default="median",
        metadata={"help": "which point of a score's distribution answers", "choices": ["median", "mean", "mode"]},
    )
    calibration: bool = field(
        default=True, metadata={"help": "use what `llm-mer calibrate` left in the checkpoint, where it did"}
    )
    windows: float | None = windows_option()
    window_overlap: float = window_overlap_option()
    long_clips: str | None = long_clips_as_trained_option()
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples for the 95 % intervals"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap, of shuffling and of --limit"})
    batch_size: int = field(default=64, metadata={"help": "questions per forward"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone instead of the recorded one"})
    dtype: str = precision_option()
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )
    keep_features: bool = field(default=False, metadata={"help": "keep fused vectors, for the report's t-SNE"})

    def __post_init__(self) -> None:
        check_least(self, {"resamples": 1, "batch_size": 1, "seed": 0, "examples": 0, "examples_seed": 0})
        check_seeds_differ(self.seeds)
        check_fold_is_named(self.folds, self.fold)
        if isinstance(self.data, str):
            self.data = [self.data]


@dataclass
class CalibrateConfig:
    """Options of ``llm-mer calibrate``."""

    checkpoint: str = field(
        default="", metadata={"help": "folder written by finetune.py", "required": True, "positional": True}
    )
    data: str = field(default="", metadata={"help": "a store, or FORMAT:PATH", "required": True})
    folds: str | None = field(
        default=None, metadata={"help": "file of folds: the parts of one of them are read in place of the splits of --data"}
    )
    fold: str | None = field(default=None, metadata={"help": "which of --folds, by its name"})
    split: str = field(default="valid", metadata={"help": "which split to fit on; any but valid is refused"})
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    long_clips: str | None = long_clips_as_trained_option()
    batch_size: int = field(default=64, metadata={"help": "questions per forward"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone instead of the recorded one"})
    dtype: str = precision_option()
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )

    def __post_init__(self) -> None:
        check_fold_is_named(self.folds, self.fold)


@dataclass
class AuditConfig:
    """Options of ``llm-mer audit``."""

    predictions: str = field(
        default="", metadata={"help": "JSONL file of objects with id and text", "required": True, "positional": True}
    )
    data: str = field(default="", metadata={"help": "a store, or FORMAT:PATH", "required": True})
    task: str = field(default="", metadata={"help": "which task was asked, by name or file", "required": True})
    output: str = field(default="", metadata={"help": "folder of evaluation.json and predictions.jsonl (default: none)"})
    split: str = field(default="test", metadata={"help": "which split"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    style: str = field(
        default="word", metadata={"help": "how classes are answered: by word or by index", "choices": ["word", "index"]}
    )
    by: list[str] = field(default_factory=list, metadata={"help": "also score by length, by turn, or by both"})
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples for the 95 % intervals"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap"})

    def __post_init__(self) -> None:
        check_least(self, {"resamples": 1, "seed": 0})
