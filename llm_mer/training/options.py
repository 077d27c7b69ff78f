"""Options of a run: data, model and adapter, typed and documented once; the command line's help is made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_args

from llm_mer.adapters import BUILT_IN, adapter_class
from llm_mer.backbones.language_lora import LORA_SHARING, SHARED
from llm_mer.errors import UserError


def check_values(options: Any, least: dict[str, float]) -> None:
    """Take a text where a list is wanted as its only entry, and refuse numbers that are too small.

    Raises:
        UserError: naming the option and its value.
    """
    hints = _resolved_hints(type(options))
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
            "help": "a store written by `llm-mer extract`, or FORMAT:PATH to read a public format in place, "
            "e.g. mosi:../shared/data/mosi (formats: `llm-mer prepare --help`)"
        },
    )
    tasks: list[str] = field(
        default_factory=lambda: ["emotion"],
        metadata={"help": "tasks to train together: built-in names (`llm-mer tasks`) or YAML files of your own"},
    )
    prompts: list[str] = field(
        default_factory=lambda: ["short"],
        metadata={"help": "prompt templates: a style name, YAML files or folders; one must fit each task × language"},
    )
    languages: list[str] | None = field(default=None, metadata={"help": "keep only these languages (en, zh)"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str = field(default="valid", metadata={"help": "split to evaluate on each epoch"})
    limit_train: int | None = field(default=None, metadata={"help": "use only this many training utterances"})
    limit_eval: int | None = field(default=None, metadata={"help": "use only this many evaluation utterances"})
    max_text_tokens: int = field(default=128, metadata={"help": "transcript tokens the adapter reads; longer is cut"})
    max_audio_steps: int = field(default=400, metadata={"help": "audio steps the adapter reads; longer is cut"})
    max_vision_steps: int = field(default=200, metadata={"help": "vision steps the adapter reads; longer is cut"})
    max_prompt_tokens: int = field(
        default=1024, metadata={"help": "a longer prompt loses its earliest dialogue turns, then is an error"}
    )
    context_window: int = field(
        default=8, metadata={"help": "utterances per context window, the target included (adapters that read context)"}
    )
    bidirectional_context: bool = field(default=False, metadata={"help": "let the window look ahead too (offline use only)"})
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
        check_values(self, dict.fromkeys((*names, "context_window"), 1))
        if not 0 <= self.missing_rate <= 1:
            raise UserError(f"missing_rate: {self.missing_rate!r}; it must lie in [0, 1]")


@dataclass
class ModelArguments:
    """Backbone, low-rank adaptation, and which adapter."""

    backbone: str = field(
        default="",
        metadata={
            "help": "Llama, GLM or Qwen by local folder or hub name; `tiny:llama` and `tiny:glm` train a small one on the "
            "spot (cached); `none` trains the adapter's own head without a language model"
        },
    )
    adapter: str = field(
        default="egmf",
        metadata={"help": f"fusion adapter: {', '.join(BUILT_IN)}, one of an installed package, or package.module:Class"},
    )
    text_source: str = field(
        default="backbone",
        metadata={
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
        metadata={"help": "load the backbone quantised (bitsandbytes)", "choices": ["none", "int8", "nf4"]},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2 or flash_attention_3"}
    )
    lora_r: int = field(default=8, metadata={"help": "LoRA rank; 0 freezes the backbone and trains the adapter alone"})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scaling"})
    lora_sharing: str = field(
        default=SHARED,
        metadata={
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
            "help": "copy the backbone into the checkpoint: auto copies local folders under 200 MB, so they load elsewhere",
            "choices": ["auto", "always", "never"],
        },
    )
    loss_weights: list[str] = field(
        default_factory=list,
        metadata={"help": "weights of losses by name, e.g. lm=1.0 ce=0.5 apc=0.1; others keep the adapter's defaults"},
    )
    adapter_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the adapter; default: the same as LoRA's"}
    )
    init_checkpoint: str | None = field(
        default=None, metadata={"help": "start from the weights of this checkpoint (same adapter and backbone)"}
    )

    def __post_init__(self) -> None:
        check_values(self, {"lora_r": 0})


def parse_loss_weights(entries: list[str]) -> dict[str, float]:
    """``["apc=0.5"]`` → ``{"apc": 0.5}``. Raises :class:`UserError` naming a malformed entry."""
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"loss_weights: {entry!r} is not NAME=NUMBER, e.g. apc=0.5") from None
    return weights


def adapter_arguments(adapter: str) -> type:
    """A dataclass of the named adapter's own options, for the command line (derived fields left out)."""
    try:
        config_class = adapter_class(adapter).config_class
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None
    hints = _resolved_hints(config_class)
    fields = []
    for entry in dataclasses.fields(config_class):
        if entry.metadata.get("derived"):
            continue
        metadata = dict(entry.metadata)
        if entry.default is not dataclasses.MISSING:
            option = field(default=entry.default, metadata=metadata)
        else:
            option = field(default_factory=entry.default_factory, metadata=metadata)  # type: ignore[arg-type]
        fields.append((entry.name, hints[entry.name], option))
    return dataclasses.make_dataclass(
        "AdapterArguments", fields, namespace={"__doc__": f"Options of the {adapter} adapter."}
    )


def _resolved_hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)
