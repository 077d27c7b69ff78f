"""Options of a run: data, model and training, typed and documented once; the command line's help is made of them.

Nothing heavy is imported here, so that help costs nothing. An option with a ``group`` in its metadata stands in the short
help. The adapter's own options are declared by the adapter, those of the trainer that are not here by transformers and TRL.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from llm_mer.adapters.registry import BUILT_IN, DEFAULT_ADAPTER
from llm_mer.backbones.lora_sharing import LORA_SHARING, SHARED
from llm_mer.data.long_clips import LONG_CLIPS, MAX_STEPS, REFUSE
from llm_mer.data.normalisation import NORMALISATIONS, parse_normalisation
from llm_mer.errors import UserError
from llm_mer.training.bounds import CHANCE, NOT_NEGATIVE, POSITIVE, SEED, check_bounds
from llm_mer.training.objectives import CRPS, DISTRIBUTION, NUMBER_OBJECTIVES, OBJECTIVES, TOKENS, VOTE_TARGETS

RUN = "Run"
DATA = "Data and questions"
MODEL = "Model"
ADAPTER = "Adapter"
OPTIMISATION = "Optimisation"
SAVING = "Evaluation and saving"
RESOURCES = "Resources"
GROUPS = (RUN, DATA, MODEL, ADAPTER, OPTIMISATION, SAVING, RESOURCES)
"""Of the short help, in order."""

SECRETS = ("hub_token",)
"""Options that are read from the environment only: a command line is seen by others, a file is kept."""


def check_option_values(options: Any, least: dict[str, float]) -> None:
    """Take a text where a list is wanted as its only entry, and refuse numbers that are too small.

    Raises:
        UserError: naming the option and its value.
    """
    hints = get_type_hints(type(options))
    for entry in dataclasses.fields(options):
        value = getattr(options, entry.name)
        if entry.name in least and value is not None and value < least[entry.name]:
            raise UserError(f"{entry.name}: {value!r}; it must be at least {least[entry.name]}")
        if value is None or list[str] not in (hints[entry.name], *get_args(hints[entry.name])):
            continue
        if isinstance(value, str):
            setattr(options, entry.name, [value])
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{entry.name}: {value!r}; it must be a list of texts, e.g. [a, b]")


@dataclass
class DataArguments:
    """What is read and asked."""

    data: str = field(
        default="",
        metadata={
            "group": DATA,
            "help": "a store written by `llm-mer extract`, or FORMAT:PATH to read a public format in place, "
            "e.g. mosi:../shared/data/mosi (formats: `llm-mer prepare --help`)",
        },
    )
    tasks: list[str] = field(
        default_factory=lambda: ["emotion"],
        metadata={
            "group": DATA,
            "help": "tasks to train together: built-in names (`llm-mer tasks`) or YAML files of your own",
        },
    )
    prompts: list[str] = field(
        default_factory=lambda: ["short"],
        metadata={
            "group": DATA,
            "help": "prompt templates: a style name, YAML files or folders; one must fit each task × language",
        },
    )
    languages: list[str] | None = field(default=None, metadata={"group": DATA, "help": "keep only these languages (en, zh)"})
    folds: str | None = field(
        default=None,
        metadata={
            "help": "file of folds, as `llm-mer compare --folds` writes; the parts train, valid and test of one fold are "
            "read in place of the data's splits"
        },
    )
    fold: str | None = field(default=None, metadata={"help": "which of `folds`, by its name"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str = field(default="valid", metadata={"help": "split to evaluate on each epoch"})
    limit_train: int | None = field(
        default=None, metadata={"group": DATA, "help": "only so many training utterances, drawn over languages"}
    )
    limit_eval: int | None = field(
        default=None, metadata={"help": "only so many evaluation utterances, drawn over languages"}
    )
    max_text_tokens: int = field(default=128, metadata={"help": "transcript tokens the adapter reads; longer is cut"})
    max_audio_steps: int = field(default=MAX_STEPS["audio"], metadata={"help": "most audio steps the adapter reads"})
    max_vision_steps: int = field(default=MAX_STEPS["vision"], metadata={"help": "most vision steps the adapter reads"})
    long_clips: str = field(
        default=REFUSE,
        metadata={
            "help": "clips of more steps: the run is refused, or they are cut and their beginning is learnt",
            "choices": list(LONG_CLIPS),
        },
    )
    max_prompt_tokens: int = field(
        default=1024, metadata={"help": "a longer prompt loses its earliest dialogue turns, then is an error"}
    )
    context_window: int = field(
        default=8,
        metadata={"group": DATA, "help": "utterances per context window, the target included (adapters that read context)"},
    )
    bidirectional_context: bool = field(default=False, metadata={"help": "let the window look ahead too (offline use only)"})
    normalisation: list[str] = field(
        default_factory=list,
        metadata={
            "group": DATA,
            "help": "how features are normalised, e.g. audio=speaker vision=none: "
            + "; ".join(f"{name}, {what}" for name, what in NORMALISATIONS.items()),
        },
    )
    missing_rate: float = field(
        default=0.0,
        metadata={
            "help": "each step of each modality and each word of a training utterance is missing with this rate, the same "
            "ones in every epoch (MMSA's protocol); evaluation stays whole"
        },
    )
    missing_seed: int = field(default=1111, metadata={"help": "seed of what missing_rate takes"})
    chat: str = field(
        default="auto",
        metadata={
            "help": "put the prompt into the tokenizer's chat template when it has one",
            "choices": ["auto", "never"],
        },
    )

    def __post_init__(self) -> None:
        names = ("limit_train", "limit_eval", "max_text_tokens", "max_audio_steps", "max_vision_steps", "max_prompt_tokens")
        check_option_values(self, dict.fromkeys((*names, "context_window"), 1))
        check_bounds(self, {"missing_seed": SEED})
        parse_normalisation(self.normalisation)
        if (self.folds is None) != (self.fold is None):
            given, lacks = ("folds", "fold") if self.fold is None else ("fold", "folds")
            raise UserError(f"{given}: {getattr(self, given)!r} without {lacks}; a fold is named by both")
        if not 0 <= self.missing_rate <= 1:
            raise UserError(f"missing_rate: {self.missing_rate!r}; it must lie in [0, 1]")


@dataclass
class ModelArguments:
    """Backbone, low-rank adaptation, and which adapter."""

    backbone: str = field(
        default="",
        metadata={
            "group": MODEL,
            "help": "Llama, GLM or Qwen by local folder, GGUF file, hub name or the short name of a package's model "
            "(`llm-mer get`); `tiny:llama` and `tiny:glm` train a small one on the "
            "spot (cached); `none` trains the adapter's own head without a language model",
        },
    )
    adapter: str = field(
        default=DEFAULT_ADAPTER,
        metadata={
            "group": ADAPTER,
            "help": f"fusion adapter: {', '.join(BUILT_IN)}, one of an installed package, or package.module:Class; "
            "--adapter NAME --help_all shows its own options",
        },
    )
    text_source: str = field(
        default="backbone",
        metadata={
            "group": ADAPTER,
            "help": "text the adapter reads: the backbone's own embeddings of the transcript, or features in the data",
            "choices": ["backbone", "features"],
        },
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "backbone weights; auto is bfloat16 on a GPU, else float32",
            "choices": ["auto", "float32", "bfloat16"],
        },
    )
    quantization: str = field(
        default="none",
        metadata={"group": MODEL, "help": "load the backbone quantised (bitsandbytes)", "choices": ["none", "int8", "nf4"]},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2 or flash_attention_3"}
    )
    lora_r: int = field(
        default=8, metadata={"group": MODEL, "help": "LoRA rank; 0 freezes the backbone and trains the adapter alone"}
    )
    lora_alpha: int = field(default=16, metadata={"group": MODEL, "help": "LoRA scaling"})
    lora_sharing: str = field(
        default=SHARED,
        metadata={
            "group": MODEL,
            "help": "one LoRA for all languages, one of lora_r ranks for each, or both; routed sample by sample",
            "choices": list(LORA_SHARING),
        },
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout"})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "module names to adapt; default: every attention and MLP projection"}
    )
    save_backbone: str = field(
        default="auto",
        metadata={
            "help": "copy the backbone into the checkpoint: auto copies local folders and files under 200 MB, so they load "
            "elsewhere",
            "choices": ["auto", "always", "never"],
        },
    )
    loss_weights: list[str] = field(
        default_factory=list,
        metadata={
            "group": OPTIMISATION,
            "help": "weights of losses by name, e.g. lm=1.0 ce=0.5 apc=0.1; others keep the adapter's defaults",
        },
    )
    objective: str = field(
        default=TOKENS,
        metadata={
            "group": OPTIMISATION,
            "help": "what the language model learns: tokens, to say the true answer; answers, to tell it from the other "
            "admissible ones, over the distribution that evaluation scores",
            "choices": list(OBJECTIVES),
        },
    )
    number_objective: str = field(
        default=CRPS,
        metadata={
            "help": "objective: answers, for a number: continuous ranked probability score, expected absolute error, or "
            "cross entropy of the nearest answer",
            "choices": list(NUMBER_OBJECTIVES),
        },
    )
    vote_targets: str = field(
        default=DISTRIBUTION,
        metadata={
            "help": "objective: answers, where annotators voted: the distribution of their votes over the labels, or the "
            "label with the most of them, ties left out (which is all that objective: tokens can learn)",
            "choices": list(VOTE_TARGETS),
        },
    )
    class_weights: list[str] = field(
        default_factory=list,
        metadata={"help": "objective: answers, for labels: balanced (N / (C n_c)), or TASK.LABEL=WEIGHT …; others weigh 1"},
    )
    logit_adjustment: float = field(
        default=0.0,
        metadata={"help": "objective: answers, for labels: this times the log prior is added to scores while training"},
    )
    read_out: bool = field(
        default=False,
        metadata={
            "group": OPTIMISATION,
            "help": "train a linear read-out of each task on the language model's last hidden state beside its answers; "
            "loss_weights: [lm=0] trains it alone",
        },
    )
    adapter_learning_rate: float | None = field(
        default=None, metadata={"group": OPTIMISATION, "help": "learning rate of the adapter; default: the same as LoRA's"}
    )
    words_first: float = field(
        default=0.0,
        metadata={
            "group": OPTIMISATION,
            "help": "share of the training in which the language model gets no pseudo tokens and learns from the words "
            "alone, the adapter from its own losses",
        },
    )
    auxiliary_fade: float | None = field(
        default=None,
        metadata={
            "help": "share of the training over which the weights of auxiliary losses fall to 0 in a line; default: never",
        },
    )
    init_checkpoint: str | None = field(
        default=None,
        metadata={"group": RUN, "help": "start from the weights of this checkpoint (same adapter and backbone)"},
    )

    def __post_init__(self) -> None:
        check_option_values(self, {"lora_r": 0})
        bounds = {"lora_alpha": POSITIVE, "lora_dropout": CHANCE, "adapter_learning_rate": NOT_NEGATIVE}
        check_bounds(self, bounds)
        if not (math.isfinite(self.logit_adjustment) and self.logit_adjustment >= 0):
            raise UserError(f"logit_adjustment: {self.logit_adjustment!r}; it must be a number from 0 on")
        if not 0 <= self.words_first < 1:
            raise UserError(f"words_first: {self.words_first!r}; it must lie in [0, 1)")
        if self.auxiliary_fade is not None and not 0 < self.auxiliary_fade <= 1:
            raise UserError(f"auxiliary_fade: {self.auxiliary_fade!r}; it must lie in (0, 1]")
        if self.backbone == "none":
            for name, value in (("words_first", self.words_first), ("auxiliary_fade", self.auxiliary_fade)):
                if value:
                    raise UserError(
                        f"{name}: {value!r}; with backbone none there is no language model that could learn alone"
                    )


def parse_loss_weights(entries: list[str]) -> dict[str, float]:
    """``["apc=0.5"]`` → ``{"apc": 0.5}``. Raises :class:`UserError` for what is none, negative or given twice."""
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, value = (part.strip() for part in entry.partition("="))
        try:
            weight = float(value)
        except ValueError:
            raise UserError(f"loss_weights: {entry!r} is not NAME=NUMBER, e.g. apc=0.5") from None
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"loss_weights: {entry!r}; a weight must be a finite number from 0 on")
        if name in weights:
            raise UserError(f"loss_weights: {name!r} has two weights, {weights[name]:g} and {weight:g}; name one")
        weights[name] = weight
    return weights


@dataclass
class TrainingOptions:
    """The trainer's options that people change, with this project's defaults; all others are transformers' and TRL's."""

    output_dir: str | None = field(
        default="runs/mer", metadata={"group": RUN, "help": "where checkpoints and the final model go"}
    )
    seed: int = field(default=42, metadata={"group": RUN, "help": "of initial weights, order of the data and dropout"})
    seeds: list[int] | None = field(
        default=None,
        metadata={
            "group": RUN,
            "help": "train once with each of these seeds, into OUTPUT_DIR/seed-N; what is finished there is kept",
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "group": RUN,
            "help": "go on from OUTPUT_DIR/checkpoint-N; true takes the last complete one in output_dir, or begins",
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "group": RUN,
            "help": "replace the model or run in OUTPUT_DIR; the new run is written beside it and takes the place when it "
            "is complete",
        },
    )
    num_train_epochs: float = field(
        default=10.0, metadata={"group": OPTIMISATION, "help": "passes over the training questions"}
    )
    max_steps: int = field(
        default=-1, metadata={"group": OPTIMISATION, "help": "steps of the optimiser, in place of epochs; -1: by epochs"}
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"group": OPTIMISATION, "help": "questions per step and process"}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"group": OPTIMISATION, "help": "batches whose gradients are added up for a step"}
    )
    learning_rate: float = field(default=1e-3, metadata={"group": OPTIMISATION, "help": "peak learning rate"})
    weight_decay: float = field(default=0.01, metadata={"group": OPTIMISATION, "help": "AdamW weight decay"})
    warmup_steps: float = field(
        default=0.1, metadata={"group": OPTIMISATION, "help": "warm-up steps, or a share of all steps below 1"}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"group": OPTIMISATION, "help": "learning-rate schedule, e.g. linear, cosine, constant"}
    )
    per_device_eval_batch_size: int = field(
        default=32, metadata={"group": SAVING, "help": "questions per evaluation step and process"}
    )
    eval_strategy: str = field(
        default="epoch", metadata={"group": SAVING, "help": "when to evaluate: no, steps (with eval_steps), epoch"}
    )
    save_strategy: str = field(
        default="epoch", metadata={"group": SAVING, "help": "when to save: no, steps (with save_steps), epoch"}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"group": SAVING, "help": "checkpoints kept, the best among them"}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"group": SAVING, "help": "finish with the best checkpoint"})
    metric_for_best_model: str | None = field(
        default="score",
        metadata={"help": "score is the mean of each task's headline metric over languages; nll and brier are of labels"},
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "whether more of that metric is better"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"group": SAVING, "help": "stop after so many evaluations without a better score"}
    )
    logging_steps: float = field(default=10, metadata={"group": SAVING, "help": "log every so many steps"})
    bf16: bool | None = field(
        default=None, metadata={"group": RESOURCES, "help": "bf16 mixed precision; default: on a GPU that has it"}
    )
    packing_length: int | None = field(
        default=None,
        metadata={
            "group": RESOURCES,
            "help": "put the questions of a step into rows of at most so many tokens, several in a row and each as if it "
            "were alone: the same loss and gradients with less padding",
        },
    )
    use_liger_kernel: bool = field(
        default=False,
        metadata={
            "group": RESOURCES,
            "help": "fused kernels of liger-kernel for the backbone's layers and the answer's loss (needs a GPU)",
        },
    )
    deepspeed: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "group": RESOURCES,
            "help": "a DeepSpeed configuration, e.g. deepspeed_configs/zero2.json (needs torchrun)",
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "fixed: the collator needs its column"})
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "old name of activation_checkpointing"})
