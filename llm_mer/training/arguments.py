"""The trainer's arguments: TRL's, with defaults that fit this project."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from llm_mer.errors import UserError
from llm_mer.resources.files import resolve_file


@dataclass
class MerTrainingArguments(SFTConfig):
    """TRL's trainer arguments with defaults that fit this project (see ``--help`` for all of them)."""

    output_dir: str | None = field(default="runs/mer", metadata={"help": "where checkpoints and the final model go"})
    num_train_epochs: float = field(default=10.0, metadata={"help": "passes over the training questions"})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "questions per step and process"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "questions per evaluation step and process"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay"})
    warmup_steps: float = field(default=0.1, metadata={"help": "warm-up steps, or a share of all steps below 1"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "learning-rate schedule"})
    logging_steps: float = field(default=10, metadata={"help": "log every so many steps"})
    eval_strategy: str = field(default="epoch", metadata={"help": "when to evaluate: no, steps, epoch"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to save: no, steps, epoch"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept, the best among them"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "finish with the best checkpoint"})
    metric_for_best_model: str | None = field(
        default="score", metadata={"help": "score is the mean of each task's headline metric over languages"}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "whether more of that metric is better"})
    seeds: list[int] | None = field(
        default=None,
        metadata={"help": "train once with each of these seeds, into OUTPUT_DIR/seed-N; what is finished there is kept"},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many evaluations without a better score"}
    )
    packing_length: int | None = field(
        default=None,
        metadata={
            "help": "put the questions of a step into rows of at most so many tokens, several in a row and each as if it "
            "were alone: the same loss and gradients with less padding"
        },
    )
    use_liger_kernel: bool = field(
        default=False,
        metadata={"help": "fused kernels of liger-kernel for the backbone's layers and the answer's loss (needs a GPU)"},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "fixed: the collator needs its column"})
    # Of the next two, transformers and TRL each declare one bool | None and the other bool.
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "old name of activation_checkpointing"}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bf16 mixed precision; default: on a GPU that has it"}
    )

    def __post_init__(self) -> None:
        self.given = {entry.name: copy.deepcopy(getattr(self, entry.name)) for entry in dataclasses.fields(self)}
        if self.seeds is not None:
            self.seeds = check_seeds(self.seeds)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}; it must be at least 1")
        if self.packing_length is not None and self.packing_length < 1:
            raise UserError(f"packing_length: {self.packing_length}; it must be at least 1")
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
            given = json.loads(given)
        self.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        super().__post_init__()


def check_seeds(seeds: Any) -> list[int]:
    """Seeds as a list. Raises :class:`UserError` for what is no whole number, negative, or named twice."""
    found = seeds if isinstance(seeds, list) else [seeds]
    if not found or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in found):
        raise UserError(f"seeds: {seeds!r}; it must be a list of whole numbers from 0 on, e.g. [1111, 2222]")
    if len(set(found)) != len(found):
        raise UserError(f"seeds: {found} names a seed twice")
    return found
