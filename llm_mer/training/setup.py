"""Everything before the first step: checked options and data, model, collator, trainer."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedConfig, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from llm_mer.backbones.attention import (
    EAGER,
    MASK_AWARE_ATTENTION,
    attends_by_positions,
    attention_implementation,
    check_mask,
)
from llm_mer.data.dataset import MerDataset
from llm_mer.data.long_clips import REFUSE
from llm_mer.distributed.deepspeed import fill_zero3_auto_sizes, init_deepspeed_process_group
from llm_mer.distributed.fsdp import fsdp_requested
from llm_mer.distributed.process_group import check_launch
from llm_mer.errors import UserError
from llm_mer.model.collator import MerCollator
from llm_mer.model.liger_kernels import check_liger, use_liger
from llm_mer.model.modeling_mer import MerHeadModel, conditional_generation_of, fusion_adapter_of
from llm_mer.model.packing import check_packing
from llm_mer.model.prompt_lengths import backbone_positions, check_prompt_lengths
from llm_mer.model.step_limits import StepLimits, check_dataset_lengths, training_remedy
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.answer_batches import AnswerCollator
from llm_mer.training.checks import (
    check_batch_size,
    check_best_metric,
    check_learning_rates,
    check_loss_weights,
    check_objective,
    check_sharding,
    learns_votes,
    warn_of_unread_options,
)
from llm_mer.training.class_balance import class_balance
from llm_mer.training.describe import describe_run, with_missing_steps
from llm_mer.training.injection_schedule import InjectionSchedule
from llm_mer.training.model_builder import BuiltModel, build_model, resolve_backbone
from llm_mer.training.objectives import TOKENS
from llm_mer.training.optimizers import check_optimizer_arguments, check_schedule
from llm_mer.training.progress import log_progress_without_terminal
from llm_mer.training.resume import check_resume, find_resume_checkpoint
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import RunData, check_prompts, prepare_data
from llm_mer.training.sampling import _BothSplits, question_lengths
from llm_mer.training.trainer import HeadTrainer, MerTrainer
from llm_mer.training.untrained import UntrainedCheck

logger = logging.getLogger(__name__)


def build_trainer(config: RunConfig) -> MerTrainer | HeadTrainer:
    """Do everything up to ``train()``: check options and data, build model, collator and trainer.

    Raises:
        UserError: options, data, tasks, prompts or a checkpoint to resume from that do not match.
    """
    model, training = config.model, config.training
    loss_weights = _check_options(config)
    resumed = find_resume_checkpoint(training)
    prepared = prepare_data(config.data, with_prompts=model.backbone != "none", use_votes=learns_votes(model))
    run = with_missing_steps(config, prepared)
    _log_data(config, run)
    check_batch_size(training, len(run.train))
    _check_evaluation_data(config, run)
    _set_resumed_folder(config, run, resumed)
    built = _build_model_for_training(config, run)
    description = describe_run(config, run, built, loss_weights)
    if is_deepspeed_zero3_enabled():
        fill_zero3_auto_sizes(built.model, fusion_adapter_of(built.model), training.hf_deepspeed_config.config)
    _check_lengths(config, run, built)
    collator = build_collator(config, run, built)
    rows, evaluation_rows = _question_rows(config, run, collator)
    trainer = _create_trainer(config, run, built, collator, rows, evaluation_rows)
    log_progress_without_terminal(trainer)
    evaluation = run.evaluation if evaluation_rows is not None else None
    schedule = InjectionSchedule(model.words_first, model.auxiliary_fade)
    trainer.set_up(built.processor, loss_weights, model.adapter_learning_rate, schedule, description, evaluation)
    trainer.number_objective = model.number_objective
    trainer.add_callback(UntrainedCheck(trainer))
    return trainer


def _check_options(config: RunConfig) -> dict[str, float]:
    """Check the launch and the options that need no data; returns the loss weights."""
    model, training = config.model, config.training
    check_launch(training.world_size, os.environ)
    if training.n_gpu > 1:
        raise UserError(
            f"one process sees {training.n_gpu} GPUs; start one for each: torchrun --standalone --nproc_per_node "
            f"{training.n_gpu} finetune.py …, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    check_optimizer_arguments(training)
    check_schedule(training)
    loss_weights = check_loss_weights(model)
    check_objective(model, training)
    check_learning_rates(model, training)
    warn_of_unread_options(config)
    check_sharding(model)
    if training.use_liger_kernel:
        sharded = is_deepspeed_zero3_enabled() or fsdp_requested()
        check_liger(training.device.type, model.backbone, sharded, training.liger_kernel_config)
    if training.packing_length is not None and model.backbone == "none":
        raise UserError("packing_length: packs prompts, and backbone: none has none; leave it out")
    return loss_weights


def _log_data(config: RunConfig, run: RunData) -> None:
    """Log what is made of votes, and which utterances a limit kept."""
    if config.training.local_process_index != 0:
        return
    for line in report_votes(run.train, config.model.objective):
        logger.warning(line)
    for split, dataset in ((config.data.train_split, run.train), (config.data.eval_split, run.evaluation)):
        if dataset is not None and dataset.drawn is not None:
            logger.info("%s: %s", split, dataset.drawn)


def _check_evaluation_data(config: RunConfig, run: RunData) -> None:
    """Check that there is something to evaluate on, and a prompt for every question of it."""
    data = config.data
    if config.training.eval_strategy == "no":
        return
    if run.evaluation is None or len(run.evaluation) == 0:
        lacks = f"no split {data.eval_split!r}" if run.evaluation is None else f"no question in {data.eval_split!r}"
        raise UserError(
            f"{data.data}: {lacks} to evaluate on; set eval_strategy: no, load_best_model_at_end: false to train without"
        )
    check_best_metric(config.training, run.evaluation)
    if config.model.backbone != "none":
        check_prompts(run.evaluation, load_prompts(data.prompts))


def _set_resumed_folder(config: RunConfig, run: RunData, resumed: Path | None) -> None:
    """Check the checkpoint to resume from, if any, and pass it on in the training arguments."""
    training = config.training
    if resumed is not None:
        backbone = None if config.model.backbone == "none" else resolve_backbone(config.model.backbone)
        check_resume(resumed, config, run, backbone)
    training.resume_from_checkpoint = None if resumed is None else str(resumed)
    if resumed is not None and training.process_index == 0:
        logger.info("going on from %s", resumed)


def _build_model_for_training(config: RunConfig, run: RunData) -> BuiltModel:
    """Build the model, with liger-kernel and DeepSpeed's process group where they are used."""
    training = config.training
    if is_deepspeed_zero3_enabled():
        init_deepspeed_process_group(training.world_size)
    built = build_model(config, run)
    if training.use_liger_kernel:
        message = use_liger(built.model, training.liger_kernel_config)
        if training.process_index == 0:
            logger.info(message)
        # transformers and TRL would apply the option to the outermost model, which liger-kernel does not know.
        training.use_liger_kernel = False
    if training.packing_length is not None:
        check_packing(built.model.config.get_text_config(), config.data.max_prompt_tokens)
    return built


def _check_lengths(config: RunConfig, run: RunData, built: BuiltModel) -> None:
    """Refuse clips and prompts that are too long for the run or its backbone, of both splits, before the first step."""
    data, adapter = config.data, fusion_adapter_of(built.model)
    limits = StepLimits.of(built.processor, adapter, run.description.get("features"))
    splits = [(run.train, data.train_split)]
    if run.evaluation is not None and config.training.eval_strategy != "no":
        splits.append((run.evaluation, data.eval_split))
    for dataset, split in splits:
        where = f"{data.data}, split {split!r}"
        if data.long_clips == REFUSE:
            check_dataset_lengths(dataset, limits, where, partial(training_remedy, limits, dataset, adapter))
        if config.model.backbone != "none":
            check_prompt_lengths(built.processor, dataset, backbone_positions(built.model.config), where)


def _question_rows(config: RunConfig, run: RunData, collator: MerCollator) -> tuple[Dataset, Dataset | None]:
    """Rows of question numbers for training and evaluation, with prompt lengths where sampling needs them."""
    training = config.training
    with_lengths = training.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    rows = Dataset.from_dict({"question": list(range(len(run.train)))})
    if with_lengths:
        rows = rows.add_column(training.length_column_name, question_lengths(collator, "train", training))
    if run.evaluation is None or training.eval_strategy == "no":
        return rows, None
    # One collator serves both: evaluation rows are numbered after the training rows.
    evaluation_rows = Dataset.from_dict({"question": [len(run.train) + i for i in range(len(run.evaluation))]})
    if with_lengths:
        evaluation_collator = dataclasses.replace(collator, dataset=run.evaluation)
        lengths = question_lengths(evaluation_collator, "evaluation", training)
        evaluation_rows = evaluation_rows.add_column(training.length_column_name, lengths)
    return rows, evaluation_rows


def _create_trainer(
    config: RunConfig,
    run: RunData,
    built: BuiltModel,
    collator: MerCollator,
    rows: Dataset,
    evaluation_rows: Dataset | None,
) -> MerTrainer | HeadTrainer:
    training = config.training
    callbacks: list[TrainerCallback] = []
    if training.eval_strategy != "no" and training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
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
    if fsdp_requested() and not trainer.is_fsdp_enabled:
        raise UserError(
            "accelerate launch was asked for FSDP, which it has for GPUs only: here it would train unsharded and say "
            "nothing; use torchrun --standalone --nproc_per_node N finetune.py --deepspeed deepspeed_configs/zero3.json"
        )
    return trainer


def report_votes(train: MerDataset, objective: str) -> list[str]:
    """What is learnt of a task's votes, where it is not their distribution."""
    how = "; objective: answers can learn their distribution" if objective == TOKENS else ""
    return [
        f"task {name!r}: of {count} training utterances with votes the majority is learnt, and {train.tied[name]} whose "
        f"votes tie are left out{how}"
        for name, count in train.voted.items()
        if count and not train.use_votes
    ]


def build_collator(config: RunConfig, run: RunData, built: BuiltModel) -> MerCollator:
    """The collator of the run's objective.

    Raises:
        UserError: a backbone whose attention cannot keep answers apart that stand in one row.
    """
    attention, uses_context = attention_of(built.model), fusion_adapter_of(built.model).uses_context
    if config.model.objective == TOKENS:
        by_mask = not attends_by_positions(attention)
        packing = config.training.packing_length
        return MerCollator(run.train, built.processor, uses_context, packing, by_mask, read_out=config.model.read_out)
    if attention not in MASK_AWARE_ATTENTION:
        raise UserError(f"objective: answers needs attention under a mask, not {attention}; say attn_implementation: sdpa")
    balance = class_balance(config.model.class_weights, config.model.logit_adjustment, run.train)
    options: dict[str, Any] = {"read_out": config.model.read_out, "eager": attention == EAGER, "balance": balance}
    collator = AnswerCollator(run.train, built.processor, uses_context, **options)
    longest = config.data.max_prompt_tokens + collator.most_answer_tokens()
    check_mask(built.model.config.get_text_config(), longest)
    return collator


def attention_of(model: nn.Module) -> str:
    """The backbone's attention implementation, transformers' own choice where none was asked for; ``no`` without one."""
    text_config = conditional_generation_of(model).config.text_config
    return str(attention_implementation(text_config)) if isinstance(text_config, PreTrainedConfig) else "no"
