"""Options of the experiments' commands; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_mer.adapters.registry import DEFAULT_ADAPTER
from llm_mer.checkpoints.precision import precision_option
from llm_mer.errors import UserError
from llm_mer.evaluation.options import check_fold_is_named, check_least, check_seeds_differ

METRICS: tuple[str, ...] = ("accuracy", "weighted_f1", "ua", "ova_accuracy", "mae", "rmse", "corr", "ccc")


@dataclass
class CompareConfig:
    """Options of ``llm-mer compare``."""

    config: str = field(default="", metadata={"help": "training YAML every run starts from", "required": True})
    output: str = field(default="runs/compare", metadata={"help": "folder; finished runs in it are kept, the rest is done"})
    adapters: list[str] = field(default_factory=lambda: [DEFAULT_ADAPTER], metadata={"help": "adapters, or all"})
    ablations: list[str] = field(
        default_factory=list,
        metadata={
            "help": "paper (every row of the adapters' own ablation tables, each modality left out and alone, no LoRA), "
            "lora (one LoRA for all languages against one for each, both, and none), or "
            "ADAPTER:option=value[,option=value] (ADAPTER may be *; options of the adapter, of the model, e.g. lora_r=0, "
            "and of reading, e.g. prompts=notext or languages=en, which trains on English and scores on all)"
        },
    )
    twins: list[str] = field(
        default_factory=list,
        metadata={
            "help": "text: beside every adapter the same training without pseudo tokens, whose language model gets the text "
            "alone",
            "choices": ["text"],
        },
    )
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "each run is repeated with each seed"})
    runs: int | None = field(
        default=None, metadata={"help": "so many seeds: the one of --seeds, default 1111, and those after it"}
    )
    folds: str = field(
        default="",
        metadata={
            "help": "train and test on folds of all utterances, whichever split they are in: session or speaker (each left "
            "out in turn), a number of folds that keep dialogues (else speakers) whole, or a file of folds"
        },
    )
    validation: float = field(
        default=0.1,
        metadata={"help": "of --folds: share of each training part that chooses the epoch, whole dialogues or speakers"},
    )
    fold_seed: int = field(default=0, metadata={"help": "of --folds: the folds and their validation are drawn with it"})
    jobs: int = field(default=1, metadata={"help": "trainings at a time, each in a process of its own"})
    backbones: list[str] = field(
        default_factory=list, metadata={"help": "backbones (none is the adapter's own head); default: the YAML's"}
    )
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "option=value for every run, on top of the YAML, e.g. num_train_epochs=8"}
    )
    split: str = field(default="test", metadata={"help": "split that is scored"})
    conditions: list[str] = field(
        default_factory=list, metadata={"help": "also score under shuffle:…, without:… or subsets, as in evaluate"}
    )
    dialogue_decoder: bool = field(default=False, metadata={"help": "also score after the Dialogical Emotion Decoder"})
    subsets: list[str] = field(
        default_factory=list, metadata={"help": "also score these tagged subsets, e.g. neutral_words"}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": f"metrics of the table: {', '.join(METRICS)}; default: the headline metric of each task"},
    )
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples"})
    keep_models: bool = field(default=False, metadata={"help": "keep the checkpoints, not only predictions"})

    def __post_init__(self) -> None:
        check_least(self, {"resamples": 1, "fold_seed": 0, "jobs": 1})
        check_seeds_differ(self.seeds)
        if self.runs is not None:
            check_least(self, {"runs": 1})
            if len(self.seeds) != 1:
                raise UserError(f"--runs {self.runs} beside {len(self.seeds)} seeds; give the first of them, or no --runs")
            self.seeds, self.runs = list(range(self.seeds[0], self.seeds[0] + self.runs)), None
        if self.folds and self.split != "test":
            raise UserError(f"--split {self.split}: with --folds the test part of each fold is scored; leave it out")


@dataclass
class CrosslingualConfig:
    """Options of ``llm-mer crosslingual``."""

    config: str = field(default="", metadata={"help": "training YAML every run starts from", "required": True})
    output: str = field(
        default="runs/crosslingual", metadata={"help": "folder; finished runs in it are kept, the rest is done"}
    )
    adapters: list[str] = field(default_factory=lambda: [DEFAULT_ADAPTER], metadata={"help": "adapters, or all"})
    backbones: list[str] = field(
        default_factory=list, metadata={"help": "backbones (none is the adapter's own head); default: the YAML's"}
    )
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "each run is repeated with each seed"})
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "option=value for every run, on top of the YAML, e.g. num_train_epochs=8"}
    )
    split: str = field(default="test", metadata={"help": "split that is scored"})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": f"metrics: {', '.join(METRICS)}; default: the headline metric of each task"}
    )
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples"})

    def __post_init__(self) -> None:
        check_least(self, {"resamples": 1})
        check_seeds_differ(self.seeds)


@dataclass
class PromptComparisonConfig:
    """Options of ``llm-mer prompts compare``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py, asked in every prompt"})
    config: str = field(default="", metadata={"help": "instead: training YAML; a model is trained with each prompt"})
    data: str = field(default="", metadata={"help": "a store, or FORMAT:PATH (with --checkpoint)"})
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "styles, YAML files or folders, each one variant; default: every style"}
    )
    label_orders: int = field(
        default=3,
        metadata={"help": "other orders of the labels to try where a prompt lists them, if there are (with --checkpoint)"},
    )
    generate: bool = field(
        default=False, metadata={"help": "also answer by free generation, unparseable rate measured (with --checkpoint)"}
    )
    output: str = field(
        default="", metadata={"help": "folder (default: CHECKPOINT/prompts, or runs/prompts); finished trainings are kept"}
    )
    folds: str | None = field(
        default=None, metadata={"help": "file of folds: the parts of one of them are read in place of the splits of --data"}
    )
    fold: str | None = field(default=None, metadata={"help": "which of --folds, by its name"})
    split: str = field(default="test", metadata={"help": "which split"})
    tasks: list[str] | None = field(default=None, metadata={"help": "only these tasks of the checkpoint"})
    languages: list[str] | None = field(default=None, metadata={"help": "only these languages"})
    limit: int | None = field(default=None, metadata={"help": "only so many utterances, drawn over languages by --seed"})
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "of the trainings (with --config)"})
    adapter: str = field(
        default=DEFAULT_ADAPTER,
        metadata={"help": "of the trainings (with --config); package.module:Class where a checkpoint's is a class of yours"},
    )
    overrides: list[str] = field(default_factory=list, metadata={"help": "option=value for every training (with --config)"})
    resamples: int = field(default=1000, metadata={"help": "bootstrap resamples"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap and of the orders of labels"})
    batch_size: int = field(default=64, metadata={"help": "questions per forward"})
    backbone: str | None = field(default=None, metadata={"help": "use this backbone instead of the recorded one"})
    dtype: str = precision_option()

    def __post_init__(self) -> None:
        check_least(self, {"resamples": 1, "seed": 0})
        check_seeds_differ(self.seeds)
        check_fold_is_named(self.folds, self.fold)
