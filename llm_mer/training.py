"""Training: the trainer on TRL's, its arguments, and :func:`finetune`, the whole way from options to a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm import tqdm
from transformers import EarlyStoppingCallback, PreTrainedConfig, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer, TrlParser

from llm_mer.adapters import adapter_class
from llm_mer.adapters.base import IGNORE_CLASS, FusionAdapter
from llm_mer.building import BuiltModel, build_model, resolve_backbone, stand_in_config
from llm_mer.checkpoint import (
    TRAJECTORIES,
    CheckpointDescription,
    drop_training_only,
    folder_fingerprint,
    reference_backbone,
    stack_versions,
)
from llm_mer.configuration import (
    DataArguments,
    ModelArguments,
    adapter_arguments,
    build_adapter_config,
    parse_loss_weights,
)
from llm_mer.data.collator import MerCollator
from llm_mer.data.corruption import MissingSteps, Reader
from llm_mer.data.dataset import MerDataset
from llm_mer.data.reading import RunData, check_prompts, prepare_data
from llm_mer.errors import UserError
from llm_mer.evaluation.journal import predict_all
from llm_mer.evaluation.metrics import compute_metrics
from llm_mer.inference import Predictor
from llm_mer.interruption import Interrupted, Interruption
from llm_mer.kernels import check_liger, use_liger
from llm_mer.modeling import MerHeadModel, conditional_generation_of, describe_parameters, fusion_adapter_of
from llm_mer.packing import attends_by_positions, check_packing
from llm_mer.prediction import Prediction
from llm_mer.processes import Processes, check_launch
from llm_mer.processing import MerProcessor
from llm_mer.prompts import load_prompts
from llm_mer.run_manifest import RunManifest, given_options
from llm_mer.run_manifest import begin as begin_manifest
from llm_mer.sharding import is_sharded, keep_whole, reduce_in_one_order, size_of
from llm_mer.tasks import Task
from llm_mer.whole_checkpoints import SEAL, Saving, checkpoints, damage, full_disk, last_whole, remove_checkpoints

logger = logging.getLogger(__name__)

HEADLINE: dict[str, str] = {"classification": "weighted_f1", "iemocap": "ua", "mosi": "corr", "sims": "corr"}
"""Metric of each convention that enters ``eval_score``, the mean by which the best checkpoint is chosen."""


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


@contextmanager
def optimiser_parameters(module: nn.Module) -> Iterator[None]:
    """Inside, the parameters of ``module`` are what the optimiser steps, whole; what is changed in place stays changed.

    Plain and data-parallel training step the parameters themselves: nothing to do. DeepSpeed's ZeRO steps float32 copies
    of its own, sharded over ranks, and writes them over the model's parameters at every step, so a change to the latter
    alone would be gone one step later. Collective: every rank comes here, and all make the same changes. Stage 3, which
    shards the model's parameters too, is refused by :func:`check_sharding`.
    """
    sharded = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if hasattr(parameter, "_hp_mapping")  # DeepSpeed's mark, on every rank, of a parameter with such a copy
    ]
    if not sharded:
        yield
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    whole = [safe_get_full_fp32_param(parameter).detach().clone() for _, _, parameter in sharded]
    before = [value.clone() for value in whole]
    # Another parameter in its place, not other data in it: a change of dtype would cost it DeepSpeed's gradient hooks.
    for (owner, name, _), value in zip(sharded, whole, strict=True):
        owner._parameters[name] = nn.Parameter(value, requires_grad=False)
    try:
        yield
    finally:
        for owner, name, parameter in sharded:
            owner._parameters[name] = parameter
    for (_, _, parameter), old, new in zip(sharded, before, whole, strict=True):
        if torch.equal(old, new):
            continue
        safe_set_full_fp32_param(parameter, new)
        with torch.no_grad():
            parameter.copy_(new)  # what the model computes with, and saves, until the next step


class _EpochEnd(TrainerCallback):
    """Lets the adapter do its once-an-epoch work (moving averages), logs what it reports and keeps what it follows."""

    def __init__(self, trainer: MerTraining) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch % 1:
            return
        # Not the trainer's own end of an epoch: a checkpoint of the last step is written before that, and a run resumed
        # from it goes on with the next epoch.
        adapter = fusion_adapter_of(self.trainer.model)  # type: ignore[attr-defined]
        with optimiser_parameters(adapter):
            values = adapter.on_epoch_end()
        for name, value in values.items():
            self.trainer.record(name, value)
        self.follow(args, state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keep_whole(getattr(self.trainer, "model_wrapped", None), fusion_adapter_of(self.trainer.model))  # type: ignore[attr-defined]
        reduce_in_one_order(self.trainer.accelerator)  # type: ignore[attr-defined]
        path = Path(args.output_dir) / TRAJECTORIES
        if state.global_step == 0:
            if state.is_world_process_zero:
                path.unlink(missing_ok=True)
            self.follow(args, state)
        elif state.is_world_process_zero and path.is_file():  # a resumed run walks the epochs after its checkpoint again
            # A line without its end was being written when the run was killed.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            scratch = path.with_name(f".{path.name}")
            scratch.write_text("".join(line for line in lines if json.loads(line)["epoch"] <= (state.epoch or 0)))
            scratch.replace(path)

    def follow(self, args: Any, state: Any) -> None:
        """Append where the followed vectors stand now. Every rank comes here: they may be sharded."""
        adapter = fusion_adapter_of(self.trainer.model)  # type: ignore[attr-defined]
        with optimiser_parameters(adapter):
            vectors = adapter.followed_vectors()
        if not vectors or not state.is_world_process_zero:
            return
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        with (Path(args.output_dir) / TRAJECTORIES).open("a") as stream:
            for name, values in vectors.items():
                points = [[round(v, 5) for v in row] for row in values.float().cpu().tolist()]
                stream.write(json.dumps({"epoch": state.epoch or 0, "name": name, "points": points}) + "\n")


def known_targets(batch: Mapping[str, Any]) -> tuple[int, int]:
    """How many samples of a batch have a class, and how many a score."""
    classes, scores = batch.get("class_targets"), batch.get("score_targets")
    return (
        0 if classes is None else int((classes != IGNORE_CLASS).sum()),
        0 if scores is None else int((~torch.isnan(scores)).sum()),
    )


class MerTraining:
    """What both trainers share: the sum of named losses, their logs, and evaluation by the tasks' own metrics.

    The language-model loss is a sum over answer tokens divided by their count ``N`` in the whole global batch. An auxiliary
    loss is a mean over the ``C_i`` samples of a micro-batch with a target of its kind, and weighted by their share in the
    global batch. With ``n`` processes, which average their gradients, the gradient of all micro-batches is then that of one
    process with the whole batch::

        L = w_lm · n · Σ_local nll / N_global  +  Σ_i w_i · n · aux_i · C_i,local / C_i,global

    A loss without such a count (GIA-MIC's contrast, LPGNet's distillation) weighs the same in each of ``g`` micro-batches:
    ``aux_i / g``.
    """

    def set_up(
        self,
        processor: MerProcessor,
        loss_weights: dict[str, float],
        adapter_learning_rate: float | None,
        description: CheckpointDescription | None,
        evaluation: MerDataset | None,
    ) -> None:
        """Called once after the trainer's own construction."""
        self.processor = processor
        self.loss_weights = loss_weights
        self.adapter_learning_rate = adapter_learning_rate
        self.description = description
        self.evaluation = evaluation
        self._records: dict[str, list[float]] = {}
        self._shares: dict[str, dict[int, float]] = {}
        self._targets: tuple[int, int] | None = None
        self.current_gradient_accumulation_steps = 1  # set anew by each step
        self._written_in: Path | None = None
        self.add_callback(_EpochEnd(self))  # type: ignore[attr-defined]

    # --- losses ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the language-model loss and the adapter's auxiliary losses."""
        trainer: Any = self
        inputs = dict(inputs)
        if "labels" in inputs:
            inputs["use_cache"] = False
        outputs = model(**inputs)
        mode = "" if trainer.model.training else "eval_"
        total: Tensor | None = None
        if outputs.loss_sum is not None:
            weight = self.loss_weights.get("lm", 1.0)
            if num_items_in_batch is None:
                share = outputs.loss
            else:
                count = torch.as_tensor(num_items_in_batch, device=outputs.loss_sum.device).clamp(min=1)
                scale = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
                share = scale * outputs.loss_sum / count
            total = weight * share
            self.note(f"{mode}loss_lm", share, num_items_in_batch is None)
        for name, value in (outputs.aux_losses or {}).items():
            weight = self.loss_weights.get(name, 0.0)
            share = value * self.share_of(name, inputs, num_items_in_batch is None)
            self.note(f"{mode}loss_{name}", share, num_items_in_batch is None)
            if weight == 0.0:
                continue
            total = weight * share if total is None else total + weight * share
        if total is None:
            raise ValueError("the model returned no loss: no labels, and no auxiliary loss with a weight above 0")
        if trainer.model.training and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            # Every parameter gets a gradient on every process, though its part may not have run on this one: both put
            # the gradients there are one after another, and add the processes' rows up place by place.
            total = total + 0.0 * sum(p.sum() for p in fusion_adapter_of(trainer.model).parameters() if p.requires_grad)
        return (total, outputs) if return_outputs else total

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Evaluation loss of a batch; predictions are made by :class:`~llm_mer.inference.Predictor` instead."""
        trainer: Any = self
        inputs = trainer._prepare_inputs(inputs)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs).detach(), None, None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step; their known targets are counted over all processes."""
        trainer: Any = self
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if batches:  # every process has as many
            known = torch.tensor([known_targets(batch) for batch in batches], device=device).sum(dim=0)
            classes, scores = trainer.accelerator.reduce(known, reduction="sum").tolist()
            self._targets = (classes, scores)
        return batches, count

    def share_of(self, name: str, inputs: dict[str, Any], averaged: bool) -> float:
        """What an auxiliary loss of a micro-batch is multiplied by; ``averaged``: the trainer divides by the steps too."""
        trainer: Any = self
        if not trainer.model.training or self._targets is None:
            return 1.0
        steps = trainer.current_gradient_accumulation_steps
        adapter = fusion_adapter_of(trainer.model)
        local, whole = adapter.loss_count(name, *known_targets(inputs)), adapter.loss_count(name, *self._targets)
        share = 1.0 / steps
        if local is not None and whole is not None:
            share = trainer.accelerator.num_processes * local / max(whole, 1)
        return share * steps if averaged else share

    def note(self, name: str, share: Tensor, averaged: bool) -> None:
        """Note a micro-batch's share in a loss; the next log line has its sum over a step, the mean over steps."""
        trainer: Any = self
        value = float(share.detach())
        if not trainer.model.training:
            self.record(name, value)
            return
        noted = self._shares.setdefault(name, {})
        step = trainer.state.global_step
        noted[step] = noted.get(step, 0.0) + value / (trainer.current_gradient_accumulation_steps if averaged else 1)

    def record(self, name: str, value: float) -> None:
        """Note a value; the next log line carries the mean of all notes, over every process."""
        self._records.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the noted means to a log line."""
        trainer: Any = self
        evaluating = any(key.startswith("eval_") for key in logs)
        if not evaluating:
            for name, noted in self._shares.items():
                self._records.setdefault(name, []).extend(noted.values())
            self._shares.clear()
        names = sorted(n for n in self._records if n.startswith("eval_") == evaluating)
        if names:
            means = torch.tensor([float(np.mean(self._records.pop(n))) for n in names], device=trainer.args.device)
            means = trainer.accelerator.reduce(means, reduction="mean")
            logs = {**logs, **{n: round(float(v), 6) for n, v in zip(names, means, strict=True)}}
        super().log(logs, start_time)  # type: ignore[misc]

    # --- optimiser ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The trainer's own optimiser, with the adapter in groups of its own learning rate when one is set."""
        trainer: Any = self
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)  # type: ignore[misc]
        if self.adapter_learning_rate is None or getattr(self, "_groups_split", False):
            return optimizer
        adapter = {p for n, p in trainer.model.named_parameters() if "fusion_adapter" in n}
        groups = []
        for group in optimizer.param_groups:
            own = [p for p in group["params"] if p in adapter]
            rest = [p for p in group["params"] if p not in adapter]
            groups += [{**group, "params": rest}] if rest else []
            groups += [{**group, "params": own, "lr": self.adapter_learning_rate}] if own else []
        optimizer.param_groups[:] = groups
        self._groups_split = True
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The trainer's own, but groups of alike length are drawn anew each epoch from the seed and nothing else.

        Transformers draws them from the global state of torch, which differs between processes and in a resumed run.
        """
        trainer: Any = self
        if trainer.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
        rows = (trainer.train_dataset if train_dataset is None else train_dataset)[trainer.args.length_column_name]
        return GroupedByLength(trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps, list(rows), seed)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """The trainer's loop for the loss, then the tasks' metrics on the same questions."""
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)  # type: ignore[misc]
        if self.evaluation is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            predictions = self.predict_distributed(self.evaluation)
            output.metrics.update(summarise(predictions, self.processor.tasks, prefix))
            for warning in diagnose(fusion_adapter_of(self.model), predictions):  # type: ignore[attr-defined]
                logger.warning(warning)
        return output

    def predict_distributed(self, dataset: MerDataset) -> list[Prediction]:
        """Predictions for a dataset on every process, each doing its share of whole batches where it can."""
        trainer: Any = self
        # Where parameters are sharded, every forward needs every process: all answer all questions, in the same order.
        alone = is_sharded(trainer.model)
        rank, world = (0, 1) if alone else (trainer.accelerator.process_index, trainer.accelerator.num_processes)
        adapter = fusion_adapter_of(trainer.model)
        predictor = Predictor(
            trainer.model,
            self.processor,
            batch_size=trainer.args.per_device_eval_batch_size,
            use_context=adapter.uses_context,
        )
        quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            return predict_all(predictor, dataset, "evaluate", Processes(rank, world), progress=not quiet)

    # --- saving ---------------------------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL's would tell of a fine-tuned language model, without the adapter and without what it came from."""

    def _get_output_dir(self, trial: Any) -> str:
        """The folder of ``checkpoint-N``: while one is being written, that of unfinished ones."""
        if getattr(self, "_written_in", None) is not None:
            return str(self._written_in)
        return str(super()._get_output_dir(trial))  # type: ignore[misc]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """``checkpoint-N`` appears under its name when it is whole; only then are older ones deleted."""
        trainer: Any = self
        args, state = trainer.args, trainer.state
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        processes = Processes(args.process_index, args.world_size)
        saving = Saving(Path(args.output_dir), name, processes, args.local_process_index == 0)
        saving.begin()
        self._written_in = saving.scratch
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            # The folder may have moved since the best was saved: it is named by where it lies now.
            best = saving.output / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            if state.best_global_step and (best.name == name or best.is_dir()):
                state.best_model_checkpoint = str(best)
                if args.should_save:
                    state.save_to_json(str(saving.scratch / name / TRAINER_STATE_NAME))
        except Exception:
            saving.abandon()
            raise
        finally:
            self._written_in = None
        saving.finish(args.save_total_limit, state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights, and beside them everything needed to use them elsewhere."""
        trainer: Any = self
        folder = Path(output_dir or trainer.args.output_dir)
        card = folder / "README.md"
        before = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        # Every rank comes here; only the first knows where the backbone's copy lies.
        if not trainer.args.should_save:
            return
        if before is not None:
            card.write_bytes(before)
        else:
            card.unlink(missing_ok=True)  # PEFT's form, with nothing filled in
        if self.description is not None:
            self.description.save(folder)


class MerTrainer(MerTraining, SFTTrainer):
    """TRL's supervised fine-tuning trainer with pseudo tokens and auxiliary losses.

    ``compute_loss`` is ours: TRL's default calls the backbone and the output embeddings directly through a fused head,
    which leaves this project's auxiliary losses out.
    """


class HeadTrainer(MerTraining, Trainer):
    """Transformers' trainer for an adapter alone (``--backbone none``): there is no language model to fine-tune."""


def summarise(predictions: Sequence[Prediction], tasks: Sequence[Task], prefix: str) -> dict[str, float]:
    """Metrics per task and language as a flat log, and ``{prefix}_score``, the mean of the headline metrics.

    Beside each stand ``n`` and what the majority class (or the mean score) would reach on the same truths.
    """
    metrics: dict[str, float] = {}
    headlines: list[float] = []
    for task in tasks:
        for language in sorted({p.language for p in predictions if p.task == task.name}):
            chosen = [p for p in predictions if p.task == task.name and p.language == language and p.truth is not None]
            if not chosen:
                continue
            truth = [p.truth for p in chosen]
            values = compute_metrics(task, truth, [p.value for p in chosen])
            stem = f"{prefix}_{task.name}_{language}"
            names = ("accuracy", "weighted_f1", "ua") if task.kind == "classification" else ("mae", "corr")
            metrics.update({f"{stem}_{name}": float(values[name]) for name in names if name in values})
            metrics[f"{stem}_n"] = float(len(chosen))
            if task.kind == "classification":
                counts = np.unique([str(t) for t in truth], return_counts=True)[1]
                metrics[f"{stem}_majority"] = float(counts.max() / len(chosen))
            else:
                scores = np.array([float(t) for t in truth if t is not None])
                metrics[f"{stem}_mean_mae"] = float(np.abs(scores - scores.mean()).mean())
            headlines.append(float(values[HEADLINE[task.metrics]]))
    metrics[f"{prefix}_score"] = float(np.mean(headlines)) if headlines else 0.0
    return metrics


def diagnose(adapter: nn.Module, predictions: Sequence[Prediction]) -> list[str]:
    """What the adapter finds worth warning about in its own diagnostics over a dataset."""
    if not predictions or not isinstance(adapter, FusionAdapter):
        return []
    names = set.intersection(*(set(p.diagnostics) for p in predictions))
    stacked: dict[str, Tensor] = {}
    for name in names:
        rows = [np.asarray(p.diagnostics[name], dtype=np.float32) for p in predictions]
        if len({row.shape for row in rows}) == 1:
            stacked[name] = torch.from_numpy(np.stack(rows))
    return adapter.warnings_from(stacked)


# --- the whole way ----------------------------------------------------------------------------------------------------


def describe_run(
    run: RunData,
    built: BuiltModel,
    data: DataArguments,
    model: ModelArguments,
    training: MerTrainingArguments,
    loss_weights: dict[str, float],
) -> CheckpointDescription:
    """What the checkpoint will say of itself. Copies a local backbone beside the checkpoints (main process only)."""
    from llm_mer.decoding.dialogue import estimate_shift

    output = Path(str(training.output_dir))
    reference = None
    if built.backbone_source is not None:
        dtype = next(built.model.get_input_embeddings().parameters()).dtype
        save = model.save_backbone if training.process_index == 0 else "never"
        reference = reference_backbone(
            built.backbone_source, output, save, model.quantization, str(dtype).removeprefix("torch.")
        )
    config = conditional_generation_of(built.model).config
    text_config = config.text_config.to_dict() if isinstance(config.text_config, PreTrainedConfig) else None
    if text_config is not None:
        text_config.pop("_name_or_path", None)  # a folder of this machine says nothing elsewhere
    baselines: dict[str, dict[str, Any]] = {}
    shifts: dict[str, float] = {}
    for task in run.tasks:
        truths = run.train.truths(task)
        if task.kind == "classification":
            baselines[task.name] = {"counts": {name: truths.count(name) for name in task.label_names}}
            states, speakers, dialogues = run.train.spoken_labels(task)
            if states:
                shifts[task.name] = float(estimate_shift(states, speakers, dialogues))
        else:
            scores = np.array([float(t) for t in truths])
            baselines[task.name] = {"mean": float(scores.mean()), "median": float(np.median(scores)), "n": len(scores)}
    return CheckpointDescription(
        model={
            "text_config": text_config,
            "adapter": config.adapter,
            "adapter_config": config.adapter_config,
            "text_source": config.text_source,
            "lora_sharing": config.lora_sharing,
        },
        processor=built.processor.to_dict(),
        backbone=reference,
        data={
            "source": run.description.get("source", Path(data.data).name),
            "fingerprint": run.fingerprint,
            "train_questions": len(run.train),
            "features": run.description.get("features"),
            "missing": missing_steps(run.train),
        },
        baselines=baselines,
        shift_probability=shifts,
        context={"window": data.context_window, "bidirectional": data.bidirectional_context},
        training={
            "seed": training.seed,
            "loss_weights": loss_weights,
            "parameters": describe_parameters(built.model),
            "lora": {"r": model.lora_r, "alpha": model.lora_alpha, "dropout": model.lora_dropout},
            "learning_rate": training.learning_rate,
            "epochs": training.num_train_epochs,
        },
        versions=stack_versions(),
    )


def with_missing_steps(run: RunData, data: DataArguments, model: ModelArguments, adapter_options: dict[str, Any]) -> RunData:
    """The run with steps missing from its training utterances as ``missing_rate`` says; statistics are of whole ones."""
    if not data.missing_rate:
        return run
    text_source = "features" if model.backbone == "none" else model.text_source
    reader = Reader(stand_in_config(run, model, adapter_options).modalities, text_source)
    return dataclasses.replace(run, train=run.train.corrupted(MissingSteps(data.missing_rate, data.missing_seed, reader)))


def missing_steps(dataset: MerDataset) -> dict[str, float] | None:
    """Rate and seed of the steps missing from a dataset, None where it is whole."""
    found = next((c for c in dataset.corruptions if isinstance(c, MissingSteps)), None)
    return None if found is None else {"rate": found.amount, "seed": found.seed}


def check_loss_weights(model: ModelArguments) -> dict[str, float]:
    """The adapter's default weights with the user's on top. Raises :class:`UserError` for a loss nobody computes."""
    known = {"lm": 1.0, **adapter_class(model.adapter).default_loss_weights}
    chosen = parse_loss_weights(model.loss_weights)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UserError(f"loss_weights: adapter {model.adapter!r} has no loss {unknown}; it has {sorted(known)}")
    return {**known, **chosen}


def check_sharding(model: ModelArguments) -> None:
    """Refuse ZeRO-3 and FSDP for an adapter that reads or changes its own parameters between steps: there they are sharded.

    Raises:
        UserError: naming the adapter and what to use instead.
    """
    adapter = adapter_class(model.adapter)
    hooks = (adapter.on_epoch_end, FusionAdapter.on_epoch_end), (adapter.followed_vectors, FusionAdapter.followed_vectors)
    how = "deepspeed: ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if fsdp_is_wanted() else None
    if how is not None and any(own is not default for own, default in hooks):
        raise UserError(
            f"{how} shards parameters, and adapter {model.adapter!r} works on its own parameters once an epoch (a moving "
            "average); use ZeRO-2 (deepspeed_configs/zero2.json)"
        )


def fsdp_is_wanted() -> bool:
    """Whether accelerate was told to shard by FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def meet_deepspeed(training: MerTrainingArguments) -> None:
    """Let DeepSpeed find the processes that have met: on a CPU the trainer does not, and ZeRO-3 shards while loading."""
    import deepspeed

    if training.world_size > 1 and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def fit_zero3(model: nn.Module, config: dict[str, Any]) -> None:
    """Fill in ZeRO-3's ``auto`` sizes: the backbone is sharded, and the adapter may run other parts on each process.

    Which of the adapter's parts run depends on the batch, and so on the process. Sharded parts would be gathered by some and
    waited for forever; so would gradients, which are reduced in buckets as they come. The adapter's parameters stay
    whole, all gradients go into one bucket (which sorts them), and :meth:`MerTraining.compute_loss` gives each one.
    """
    adapter = fusion_adapter_of(model)
    sizes = {
        "stage3_param_persistence_threshold": max(size_of(p) for p in adapter.parameters()),
        "reduce_bucket_size": sum(size_of(p) for p in model.parameters() if p.requires_grad),
        "stage3_prefetch_bucket_size": 0,  # what to fetch ahead is guessed from the order of the step before
    }
    zero = config["zero_optimization"]
    for name, size in sizes.items():
        if zero.get(name, "auto") == "auto":
            zero[name] = size


def resumed_folder(training: MerTrainingArguments) -> Path | None:
    """The checkpoint ``resume_from_checkpoint`` names; true means the last whole one in ``output_dir``, if there is one.

    Collective. True without a whole checkpoint begins anew, so that one command both starts a run and goes on with it.

    Raises:
        UserError: a named folder that is not there, holds no state of a training, or is not whole.
    """
    wanted: Any = training.resume_from_checkpoint  # YAML's true is no text, the command line's is
    if not wanted or wanted in ("false", "False"):
        return None
    if wanted in (True, "true", "True"):
        output = Path(str(training.output_dir))
        processes = Processes(training.process_index, training.world_size)
        found = last_whole(output, processes, training.local_process_index == 0)
        if found is None and processes.first:
            logger.warning("resume_from_checkpoint: %s holds no whole checkpoint-N; the run begins anew", output)
        return found
    folder = Path(wanted)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint: no such folder {wanted!r}")
    kept = any(any(folder.glob(pattern)) for pattern in ("optimizer*", "global_step*", SEAL))
    if not kept:
        raise UserError(
            f"resume_from_checkpoint: {folder} holds no state of a training to go on from; name one of OUTPUT/checkpoint-N"
        )
    if (reason := damage(folder)) is not None:
        others = ", ".join(path.name for path in checkpoints(folder.parent) if path.name != folder.name)
        raise UserError(
            f"resume_from_checkpoint: {folder} is not whole: {reason}; "
            + (f"beside it are {others}, and " if others else "")
            + "true takes the last that is whole"
        )
    return folder


def check_resume(
    folder: Path,
    run: RunData,
    model: ModelArguments,
    training: MerTrainingArguments,
    adapter_options: dict[str, Any],
    backbone: str | None,
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        backbone: the folder or hub name it is loaded from; None for an adapter alone.

    Raises:
        UserError: naming everything that differs, with the value of the checkpoint and of this run.
    """
    saved = CheckpointDescription.load(folder)
    alone = backbone is None
    pairs: dict[str, tuple[Any, Any]] = {
        "data (fingerprint)": (saved.data.get("fingerprint"), run.fingerprint),
        "training questions": (saved.data.get("train_questions"), len(run.train)),
        "missing steps": (saved.data.get("missing"), missing_steps(run.train)),
        "tasks": (list(saved.processor.get("tasks", {})), [task.name for task in run.tasks]),
        "adapter": (saved.model.get("adapter"), model.adapter),
        "text_source": (saved.model.get("text_source"), "features" if alone else model.text_source),
    }
    if pairs["tasks"][0] == pairs["tasks"][1]:
        for task in run.tasks:
            pairs[f"task {task.name}"] = (saved.processor["tasks"][task.name], json.loads(json.dumps(task.to_dict())))
    if pairs["adapter"][0] == pairs["adapter"][1]:
        config, old = build_adapter_config(model.adapter, adapter_options), saved.model.get("adapter_config") or {}
        implied = ("num_pseudo_tokens", "auxiliary_head") if alone else ()
        for entry in dataclasses.fields(config):
            if entry.name in old and entry.name not in implied and not entry.metadata.get("derived"):
                pairs[entry.name] = (old[entry.name], json.loads(json.dumps(getattr(config, entry.name))))
    reference = saved.backbone
    if backbone is None or reference is None:
        pairs["backbone"] = ("none" if reference is None else reference.name, "none" if backbone is None else backbone)
    else:
        local = Path(backbone).is_dir()
        found = folder_fingerprint(Path(backbone)) if local else None
        pairs["backbone"] = (
            (f"{reference.name} ({reference.fingerprint[:12]}…)" if reference.fingerprint else reference.name),
            (f"{Path(backbone).name} ({found[:12]}…)" if found else backbone),
        )
        if found is not None and found == reference.fingerprint:
            del pairs["backbone"]
        lora = saved.training.get("lora") or {}
        now = {"r": model.lora_r, "alpha": model.lora_alpha, "dropout": model.lora_dropout}
        pairs |= {f"lora_{name}": (lora.get(name), value) for name, value in now.items()}
        pairs["lora_sharing"] = (saved.model.get("lora_sharing"), model.lora_sharing)
        pairs["quantization"] = (reference.quantization, model.quantization)
    pairs["seed"] = (saved.training.get("seed"), training.seed)
    pairs["learning_rate"] = (saved.training.get("learning_rate"), training.learning_rate)
    pairs["loss_weights"] = (saved.training.get("loss_weights"), check_loss_weights(model))
    different = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in pairs.items() if old != new]
    if different:
        raise UserError(f"resume_from_checkpoint: {folder} is of another run: {'; '.join(different)}")


def build_trainer(
    data: DataArguments, model: ModelArguments, training: MerTrainingArguments, adapter_options: dict[str, Any]
) -> MerTrainer | HeadTrainer:
    """Everything up to ``train()``: checked data, model, collator, trainer.

    Raises:
        UserError: options, data, tasks, prompts or a checkpoint to go on from that do not fit one another.
    """
    check_launch(training.world_size, os.environ)
    if training.n_gpu > 1:
        raise UserError(
            f"one process sees {training.n_gpu} GPUs; start one for each: torchrun --standalone --nproc_per_node "
            f"{training.n_gpu} finetune.py …, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    loss_weights = check_loss_weights(model)
    check_sharding(model)
    if training.use_liger_kernel:
        sharded = is_deepspeed_zero3_enabled() or fsdp_is_wanted()
        check_liger(training.device.type, model.backbone, sharded, training.liger_kernel_config)
    if training.packing_length is not None and model.backbone == "none":
        raise UserError("packing_length: packs prompts, and backbone: none has none; leave it out")
    build_adapter_config(model.adapter, adapter_options)
    resumed = resumed_folder(training)
    with_prompts = model.backbone != "none"
    run = with_missing_steps(prepare_data(data, with_prompts=with_prompts), data, model, adapter_options)
    if training.eval_strategy != "no":
        if run.evaluation is None or len(run.evaluation) == 0:
            raise UserError(
                f"{data.data}: no split {data.eval_split!r} to evaluate on; set eval_strategy: no, "
                "load_best_model_at_end: false to train without"
            )
        if with_prompts:
            check_prompts(run.evaluation, load_prompts(data.prompts))
    if resumed is not None:
        backbone = resolve_backbone(model.backbone) if with_prompts else None
        check_resume(resumed, run, model, training, adapter_options, backbone)
    training.resume_from_checkpoint = None if resumed is None else str(resumed)
    if resumed is not None and training.process_index == 0:
        logger.warning("going on from %s", resumed)
    if is_deepspeed_zero3_enabled():
        meet_deepspeed(training)
    built = build_model(run, data, model, adapter_options, training.seed)
    if training.use_liger_kernel:
        said = use_liger(built.model, training.liger_kernel_config)
        if training.process_index == 0:
            logger.warning(said)
        # What transformers and TRL make of the option concerns the outermost model, which liger-kernel does not know.
        training.use_liger_kernel = False
    if training.packing_length is not None:
        check_packing(built.model.config.get_text_config(), data.max_prompt_tokens)
    description = describe_run(run, built, data, model, training, loss_weights)
    adapter = fusion_adapter_of(built.model)
    if is_deepspeed_zero3_enabled():
        fit_zero3(built.model, training.hf_deepspeed_config.config)
    by_mask = not attends_by_positions(attention_of(built.model))
    collator = MerCollator(run.train, built.processor, adapter.uses_context, training.packing_length, by_mask)
    callbacks: list[TrainerCallback] = []
    if training.eval_strategy != "no" and training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    rows = Dataset.from_dict({"question": list(range(len(run.train)))})
    lengths = training.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    if lengths:
        rows = rows.add_column(training.length_column_name, question_lengths(collator, "train", training))
    evaluation_rows = None
    if run.evaluation is not None and training.eval_strategy != "no":
        # One collator serves both: evaluation rows count on from the end of the training rows.
        evaluation_rows = Dataset.from_dict({"question": [len(run.train) + i for i in range(len(run.evaluation))]})
        if lengths:
            other = MerCollator(run.evaluation, built.processor)
            column = question_lengths(other, "evaluation", training)
            evaluation_rows = evaluation_rows.add_column(training.length_column_name, column)
    options: dict[str, Any] = {
        "model": built.model,
        "args": training,
        "data_collator": _BothSplits(collator, run.evaluation),
        "train_dataset": rows,
        "eval_dataset": evaluation_rows,
        "callbacks": callbacks,
    }
    trainer: MerTrainer | HeadTrainer
    if isinstance(built.model, MerHeadModel):
        trainer = HeadTrainer(**options)
    else:
        assert isinstance(built.processor.tokenizer, PreTrainedTokenizerBase)
        trainer = MerTrainer(processing_class=built.processor.tokenizer, **options)
    if fsdp_is_wanted() and not trainer.is_fsdp_enabled:
        raise UserError(
            "accelerate launch was asked for FSDP, which it has for GPUs only: here it would train unsharded and say "
            "nothing; use torchrun --standalone --nproc_per_node N finetune.py --deepspeed deepspeed_configs/zero3.json"
        )
    evaluation = run.evaluation if evaluation_rows is not None else None
    trainer.set_up(built.processor, loss_weights, model.adapter_learning_rate, description, evaluation)
    return trainer


def question_lengths(collator: MerCollator, what: str, training: MerTrainingArguments) -> list[int]:
    """Tokens of every question of a dataset, by which batches are grouped."""
    quiet = training.disable_tqdm or training.process_index != 0
    bar = tqdm(collator.dataset.questions, desc=f"lengths ({what})", unit="question", disable=quiet, leave=False)
    return [collator.length(question) for question in bar]


class GroupedByLength(LengthGroupedSampler):
    """Indices of questions in batches of alike length, in an order that follows from the seed and the epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, a resumed one too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


@dataclass
class _BothSplits:
    """Routes rows to the collator of their split (the trainer has one collator for training and evaluation)."""

    collator: MerCollator
    evaluation: MerDataset | None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        boundary = len(self.collator.dataset)
        if rows[0]["question"] < boundary:
            return self.collator(rows)
        assert self.evaluation is not None
        other = MerCollator(self.evaluation, self.collator.processor, self.collator.use_context)
        return other([{"question": row["question"] - boundary} for row in rows])


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[DataArguments, ModelArguments, MerTrainingArguments, dict[str, Any]]:
    """YAML (``--config``) with command-line overrides, the chosen adapter's own options among them."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    written: dict[str, Any] = {}
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 == len(arguments):
            raise UserError("--config: name a YAML file")
        written = read_options(arguments[place + 1])
    adapter = _peek(arguments, written, "adapter") or ModelArguments.adapter
    types: list[Any] = [DataArguments, ModelArguments, MerTrainingArguments, adapter_arguments(adapter)]
    check_types(written, types)
    parser = _Parser(types)
    try:
        data, model, training, options = parser.parse_args_and_config(arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    if model.adapter != adapter:
        raise UserError(f"adapter: {model.adapter!r} and {adapter!r} were both named")
    check_choices(data, model, training, options)
    return data, model, training, dataclasses.asdict(options)


class _Parser(TrlParser):
    """TRL's parser, a mistake being an error of ours in place of the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def check_types(written: dict[str, Any], types: Sequence[type]) -> None:
    """Values of the YAML file by their options' types; a text is left to the command line's parser, which converts it.

    Raises:
        UserError: naming the option, its value and what would be right.
    """
    for group in types:
        for name, hint in get_type_hints(group).items():
            alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            kinds = [kind for kind in alternatives if kind is not type(None)]
            value = written.get(name)
            unquoted_no = value is False and name.endswith("_strategy")
            if len(kinds) != 1 or kinds[0] not in WORDS or name not in written or isinstance(value, str) or unquoted_no:
                continue
            if value is None and type(None) in alternatives:
                continue
            right = (int, float) if kinds[0] is float else (kinds[0],)
            if not isinstance(value, right) or (isinstance(value, bool) and kinds[0] is not bool):
                raise UserError(f"{name}: {value!r} is not {WORDS[kinds[0]]}")


def check_choices(*groups: Any) -> None:
    """Options with a closed set of values, wherever they came from (argparse checks the command line, not the YAML file).

    Raises:
        UserError: naming the option, its value and the choices.
    """
    for group in groups:
        for entry in dataclasses.fields(group):
            value, choices = getattr(group, entry.name), entry.metadata.get("choices")
            unset = value is None and entry.default is None
            if choices is not None and value not in choices and not unset:
                raise UserError(f"{entry.name}: {value!r} is not one of {', '.join(map(str, choices))}")


def read_options(file: str) -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        UserError: naming a file that is not there, not text, not YAML, or not a mapping.
    """
    import yaml

    path = Path(file)
    if path.is_dir():
        raise UserError(f"--config: {file!r} is a folder; name a YAML file")
    if not path.is_file():
        raise UserError(f"--config: no such file {file!r}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"--config: {file} is not a text file") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config: {file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config: {file}: it must be a mapping of options to values")
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise UserError(f"--config: {file}: {unnamed[0]!r} is no name of an option")
    return content


def _peek(arguments: list[str], written: dict[str, Any], name: str) -> str | None:
    """An option's value before parsing: the command line's, else the YAML file's, ``written``."""
    value = None if written.get(name) is None else str(written[name])
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
    return value


def save_final(trainer: MerTrainer | HeadTrainer, output: Path) -> None:
    """The checkpoint to answer with, in ``output``: without what only training needs. Called on every rank."""
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        assert trainer.model is not None
        drop_training_only(output, fusion_adapter_of(trainer.model).training_only_parameters())


@dataclass
class Run:
    """A training that has been checked and built, and not begun."""

    trainer: MerTrainer | HeadTrainer
    manifest: RunManifest
    output: Path


def prepare_run(
    data: DataArguments,
    model: ModelArguments,
    training: MerTrainingArguments,
    adapter_options: dict[str, Any],
    command: Sequence[str],
) -> Run:
    """Everything before the first step. ``command`` is what the manifest shows as the command line.

    Raises:
        UserError: as :func:`build_trainer`.
    """
    trainer = build_trainer(data, model, training, adapter_options)
    assert trainer.description is not None
    options = {
        "data": given_options(data),
        "model": given_options(model),
        "training": training.given,
        "adapter": adapter_options,
    }
    manifest = begin_manifest(
        command,
        options,
        trainer.description,
        trainer.processor,
        training.device.type,
        str(trainer.accelerator.mixed_precision),
        trainer.accelerator.num_processes,
    )
    return Run(trainer, manifest, Path(str(training.output_dir)))


def attention_of(model: nn.Module) -> str:
    """The backbone's attention implementation, transformers' own choice where none was asked for; ``no`` without one."""
    text_config = conditional_generation_of(model).config.text_config
    return str(text_config._attn_implementation) if isinstance(text_config, PreTrainedConfig) else "no"


def train_run(run: Run) -> RunManifest:
    """Train, keep the best, save, evaluate; the manifest lies beside the checkpoint from the start, whole at the end.

    Raises:
        UserError: a full disk, naming what is left to go on from. Interrupted: SIGTERM or Ctrl-C during training.
    """
    try:
        return _train_run(run)
    except Exception as error:
        if (told := full_disk(error, run.output)) is not None:
            raise told from error
        raise


def _train_run(run: Run) -> RunManifest:
    trainer, output = run.trainer, run.output
    first = trainer.is_world_process_zero()
    assert trainer.model is not None
    parameters = describe_parameters(trainer.model)
    if first:
        assert isinstance(trainer.train_dataset, Dataset)
        logger.warning(
            "training %s: %d trainable of %d parameters (adapter %d), %d questions, %s attention",
            run.manifest.options["model"]["adapter"],
            parameters["trainable"],
            parameters["total"],
            parameters["adapter"],
            len(trainer.train_dataset),
            attention_of(trainer.model),
        )
        run.manifest.save(output)
    if trainer.args.resume_from_checkpoint is None and trainer.args.local_process_index == 0:
        remove_checkpoints(output)
    trainer.accelerator.wait_for_everyone()
    interruption = Interruption(output, trainer.args.process_index, trainer.args.world_size)
    trainer.add_callback(interruption)
    with interruption.watching():
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    save_final(trainer, output)
    trainer.save_state()
    if first:
        (output / "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    metrics = trainer.evaluate() if trainer.evaluation is not None else {}
    if first:
        if metrics:
            print_evaluation(metrics, trainer.processor.tasks)
        run.manifest.finish(output, metrics, trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()
    if interruption.told:  # after the last checkpoint, too late to stop this run, but not those that would follow
        raise Interrupted(f"stopped by {interruption.told}; the run in {output} is finished")
    return run.manifest


def finetune(argv: Sequence[str] | None = None) -> Path:
    """``finetune.py``: parse, check, train, keep the best, save; once, or once with each of ``seeds``.

    Returns:
        The folder of the final checkpoint; with ``seeds`` the folder that holds one for each.
    """
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    data, model, training, adapter_options = parse_arguments(arguments)
    command = ["finetune.py", *arguments]
    if training.seeds is not None:
        from llm_mer.seeds import train_seeds

        return train_seeds(data, model, training, adapter_options, command)
    run = prepare_run(data, model, training, adapter_options, command)
    train_run(run)
    return run.output


def print_evaluation(metrics: dict[str, float], tasks: Sequence[Task]) -> None:
    """Scores of the evaluation split, each with n and the trivial baseline."""
    for task in tasks:
        for language in ("en", "zh"):
            stem = f"eval_{task.name}_{language}"
            if f"{stem}_n" not in metrics:
                continue
            n = int(metrics[f"{stem}_n"])
            if task.kind == "classification":
                line = f"accuracy {metrics[f'{stem}_accuracy']:.3f} (majority {metrics[f'{stem}_majority']:.3f})"
            else:
                line = f"MAE {metrics[f'{stem}_mae']:.3f} (mean {metrics[f'{stem}_mean_mae']:.3f}), "
                line += f"corr {metrics[f'{stem}_corr']:.3f}"
            print(f"{task.name} [{language}] n={n}: {line}, unparseable 0.000 (scored answers)")
