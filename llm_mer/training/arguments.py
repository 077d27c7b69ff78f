"""The trainer's arguments: TRL's, with defaults that fit this project."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import get_available_reporting_integrations
from trl import SFTConfig

from llm_mer.errors import UserError, first_line
from llm_mer.evaluation.metrics import is_lower_better
from llm_mer.resources.files import resolve_file
from llm_mer.storage.json_text import parse_json
from llm_mer.training.bounds import CHANCE, NOT_NEGATIVE, POSITIVE, SEED, Interval, check_bounds
from llm_mer.training.optimizers import check_checkpointing_options, check_optimizer
from llm_mer.training.options import SECRETS, TrainingOptions

IGNORED: dict[str, str] = {
    "label_smoothing_factor": "the loss of an answer is not smoothed",
    "loss_type": "the loss is the sum of the answer's and the adapter's, weighed by loss_weights",
    "completion_only_loss": "only answers are trained on",
    "assistant_only_loss": "only answers are trained on",
    "max_length": "say max_prompt_tokens",
    "truncation_mode": "a prompt loses its earliest dialogue turns",
    "dataset_text_field": "questions are made of prompts and utterances",
    "dataset_num_proc": "questions are made as they are needed; say dataloader_num_workers",
    "shuffle_dataset": "every epoch has an order of its own already",
    "packing_strategy": "say packing_length",
    "eval_packing": "say packing_length",
    "chat_template_path": "prompts come from templates; see prompts and chat",
    "model_init_kwargs": "say dtype, quantization or attn_implementation",
    "trust_remote_code": "no remote code is run",
    "remove_unused_columns": "the collator needs its column",
    "logging_nan_inf_filter": "a loss that is NaN or infinite stops the training",
    "eos_token": "an answer ends as the backbone's tokenizer says",
    "pad_token": "the backbone's tokenizer has one",
    "pad_to_multiple_of": "say packing_length",
    "label_names": "questions know their labels",
    "prediction_loss_only": "evaluation answers every question",
    "batch_eval_metrics": "metrics are of the whole split",
    "include_for_metrics": "metrics are of the answers",
    "eval_do_concat_batches": "metrics are of the whole split",
    "do_train": "training is what this command does",
    "do_eval": "say eval_strategy",
    "do_predict": "use llm-mer evaluate",
    "activation_offloading": "say activation_checkpointing",
    "hub_strategy": "with push_to_hub the finished checkpoint is pushed, once",
    "hub_always_push": "with push_to_hub the finished checkpoint is pushed, once",
    "hub_revision": "with push_to_hub the checkpoint goes to the main branch",
}
"""TRL's and transformers' options that have no effect here, and what does; any other value than the default is refused."""


BOUNDS: dict[str, Interval] = {
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "eval_delay"), NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), CHANCE),
    "dataloader_num_workers": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "packing_length",
            "early_stopping_patience",
        ),
        Interval(1),
    ),
}


# Where transformers and TRL declare one type each, ours fits one of them.
@dataclass
class MerTrainingArguments(TrainingOptions, SFTConfig):  # type: ignore[misc]
    """TRL's trainer arguments with defaults that fit this project (see ``--help_all`` for all of them)."""

    def __post_init__(self) -> None:
        self.given = {entry.name: copy.deepcopy(getattr(self, entry.name)) for entry in dataclasses.fields(self)}
        for name in SECRETS:
            if getattr(self, name) is not None:
                raise UserError(f"{name}: a token is read from the environment only: export HF_TOKEN=…")
        for entry in dataclasses.fields(self):
            if entry.name not in IGNORED:
                continue
            default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
            if getattr(self, entry.name) != default:
                value, why = getattr(self, entry.name), IGNORED[entry.name]
                raise UserError(f"{entry.name}: {value!r} would have no effect here: {why}; leave it out")
        if self.seeds is not None:
            self.seeds = check_seeds(self.seeds)
        check_bounds(self, BOUNDS)
        if self.max_steps != -1 and self.max_steps < 1:
            raise UserError(f"max_steps: {self.max_steps}; it must be at least 1, or -1 to train by num_train_epochs")
        self._check_selection()
        self._check_machine()
        self._check_push()
        if isinstance(self.deepspeed, str):
            self.deepspeed = resolve_file(self.deepspeed)
        if self.deepspeed is not None and "RANK" not in os.environ:
            raise UserError(
                "deepspeed: its processes find one another through a launcher; start with torchrun --standalone "
                "--nproc_per_node N finetune.py …, N being 1 for one GPU"
            )
        for name in ("packing", "padding_free"):
            if getattr(self, name):
                raise UserError(f"{name}: TRL's own knows no pseudo tokens; say packing_length: 1024 instead")
        output = Path(str(self.output_dir))
        standing = next(place for place in (output, *output.parents) if place.exists() or place == place.parent)
        if not standing.is_dir():
            raise UserError(f"output_dir: {standing} is a file, not a folder")
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.use_cpu
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, two processes on a CPU silently become one
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            if getattr(self, name) is False:  # what YAML makes of an unquoted no
                setattr(self, name, "no")
        # The collator makes the batches; TRL must not look for text columns.
        given = self.dataset_kwargs or {}
        if isinstance(given, str):  # JSON from the command line
            given = parse_json(given, "dataset_kwargs")
        if not isinstance(given, dict):
            raise UserError(f'dataset_kwargs: {given!r}; it must be an object, e.g. {{"skip_prepare_dataset": true}}')
        self.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        try:
            super().__post_init__()
        except TypeError as error:  # an option that is an object with a name it does not have
            raise UserError(f"options of the trainer: {first_line(error)}; see --help_all") from None
        # It would wait for the accelerator after every micro-batch, to hide what training/finite.py stops at.
        self.logging_nan_inf_filter = False

    def _check_machine(self) -> None:
        """Refuse what this machine or this launch has not."""
        check_optimizer(str(getattr(self.optim, "value", self.optim)))
        check_checkpointing_options(self.gradient_checkpointing_kwargs)
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise UserError("fp16: true needs a GPU; on a CPU it would compute in float32 and say nothing: leave it out")
        if self.fsdp and "RANK" not in os.environ:
            raise UserError("fsdp: start with accelerate launch --config_file accelerate_configs/fsdp2.yaml finetune.py …")
        wanted = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())
        available = ["all", "none", *get_available_reporting_integrations()]
        if missing := [name for name in wanted if name not in available]:
            raise UserError(f"report_to: {missing[0]!r} is not installed here; choose from {', '.join(available)}")
        if self.save_strategy == "steps" and self.save_steps <= 0:
            raise UserError(f"save_steps: {self.save_steps:g}; it must be above 0, or no checkpoint is saved")

    def _check_push(self) -> None:
        """The trainer itself pushes nothing: :mod:`llm_mer.cli.train` pushes the finished checkpoint."""
        if not self.push_to_hub:
            return
        if self.hub_model_id is None:
            raise UserError("push_to_hub: true, but no repository is named; say hub_model_id: OWNER/NAME")
        if self.seeds is not None:
            raise UserError("push_to_hub: with seeds there are several checkpoints; push one of them with `llm-mer push`")
        self.push_to_hub = False

    def _check_selection(self) -> None:
        """What chooses a checkpoint, or ends the run early, needs evaluations and a metric seen the right way round."""
        evaluated = self.eval_strategy not in ("no", False, None)
        if self.early_stopping_patience is not None and not evaluated:
            raise UserError(
                f"early_stopping_patience: {self.early_stopping_patience}, but eval_strategy is no and there is nothing to "
                "stop by; say eval_strategy: epoch, or leave it out"
            )
        if self.load_best_model_at_end and not evaluated:
            raise UserError(
                "load_best_model_at_end: true, but eval_strategy is no and no checkpoint is told to be the best; say "
                "load_best_model_at_end: false, or eval_strategy: epoch"
            )
        if (metric := self.metric_for_best_model) is None:
            return
        if is_lower_better(metric):
            self.greater_is_better = False  # the option's default is for the scores of which more is better
        elif self.greater_is_better is False:
            raise UserError(
                f"greater_is_better: false, but more of metric_for_best_model {metric!r} is better; leave it out, or the "
                "worst checkpoint would be kept"
            )


def check_seeds(seeds: Any) -> list[int]:
    """Seeds as a list. Raises :class:`UserError` for what is no whole number, negative, or named twice."""
    found = seeds if isinstance(seeds, list) else [seeds]
    if not found or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in found):
        raise UserError(f"seeds: {seeds!r}; it must be a list of whole numbers from 0 on, e.g. [1111, 2222]")
    if len(set(found)) != len(found):
        raise UserError(f"seeds: {found} names a seed twice")
    if above := [seed for seed in found if seed not in SEED]:
        raise UserError(f"seeds: {above[0]}; a seed must {SEED}")
    return found
