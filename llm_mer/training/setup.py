"""Everything before the first step: checked options and data, model, collator, trainer."""

from __future__ import annotations

import dataclasses
import logging
import os
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
from llm_mer.distributed.deepspeed import fill_zero3_auto_sizes, init_deepspeed_process_group
from llm_mer.distributed.fsdp import fsdp_requested
from llm_mer.distributed.process_group import check_launch
from llm_mer.errors import UserError
from llm_mer.model.collator import MerCollator
from llm_mer.model.liger_kernels import check_liger, use_liger
from llm_mer.model.modeling_mer import MerHeadModel, conditional_generation_of, fusion_adapter_of
from llm_mer.model.packing import check_packing
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.answer_batches import AnswerCollator
from llm_mer.training.checks import check_loss_weights, check_objective, check_sharding, learns_votes
from llm_mer.training.class_balance import class_balance
from llm_mer.training.describe import describe_run, with_missing_steps
from llm_mer.training.injection_schedule import InjectionSchedule
from llm_mer.training.model_builder import BuiltModel, build_model, resolve_backbone
from llm_mer.training.objectives import TOKENS
from llm_mer.training.progress import log_progress_without_terminal
from llm_mer.training.resume import check_resume, resumed_folder
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import RunData, check_prompts, prepare_data
from llm_mer.training.sampling import _BothSplits, question_lengths
from llm_mer.training.trainer import HeadTrainer, MerTrainer

logger = logging.getLogger(__name__)


def build_trainer(config: RunConfig) -> MerTrainer | HeadTrainer:
    """Everything up to ``train()``: checked data, model, collator, trainer.

    Raises:
        UserError: options, data, tasks, prompts or a checkpoint to go on from that do not fit one another.
    """
    data, model, training = config.data, config.model, config.training
    check_launch(training.world_size, os.environ)
    if training.n_gpu > 1:
        raise UserError(
            f"one process sees {training.n_gpu} GPUs; start one for each: torchrun --standalone --nproc_per_node "
            f"{training.n_gpu} finetune.py …, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    loss_weights = check_loss_weights(model)
    check_objective(model, training)
    check_sharding(model)
    if training.use_liger_kernel:
        sharded = is_deepspeed_zero3_enabled() or fsdp_requested()
        check_liger(training.device.type, model.backbone, sharded, training.liger_kernel_config)
    if training.packing_length is not None and model.backbone == "none":
        raise UserError("packing_length: packs prompts, and backbone: none has none; leave it out")
    resumed = resumed_folder(training)
    with_prompts = model.backbone != "none"
    run = with_missing_steps(config, prepare_data(data, with_prompts=with_prompts, use_votes=learns_votes(model)))
    if training.local_process_index == 0:
        for line in say_votes(run.train, model.objective):
            logger.warning(line)
        for split, dataset in ((data.train_split, run.train), (data.eval_split, run.evaluation)):
            if dataset is not None and dataset.drawn is not None:
                logger.info("%s: %s", split, dataset.drawn)
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
        check_resume(resumed, config, run, backbone)
    training.resume_from_checkpoint = None if resumed is None else str(resumed)
    if resumed is not None and training.process_index == 0:
        logger.info("going on from %s", resumed)
    if is_deepspeed_zero3_enabled():
        init_deepspeed_process_group(training.world_size)
    built = build_model(config, run)
    if training.use_liger_kernel:
        said = use_liger(built.model, training.liger_kernel_config)
        if training.process_index == 0:
            logger.info(said)
        # What transformers and TRL make of the option concerns the outermost model, which liger-kernel does not know.
        training.use_liger_kernel = False
    if training.packing_length is not None:
        check_packing(built.model.config.get_text_config(), data.max_prompt_tokens)
    description = describe_run(config, run, built, loss_weights)
    adapter = fusion_adapter_of(built.model)
    if is_deepspeed_zero3_enabled():
        fill_zero3_auto_sizes(built.model, adapter, training.hf_deepspeed_config.config)
    collator = build_collator(config, run, built)
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
            other = dataclasses.replace(collator, dataset=run.evaluation)
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
    if fsdp_requested() and not trainer.is_fsdp_enabled:
        raise UserError(
            "accelerate launch was asked for FSDP, which it has for GPUs only: here it would train unsharded and say "
            "nothing; use torchrun --standalone --nproc_per_node N finetune.py --deepspeed deepspeed_configs/zero3.json"
        )
    log_progress_without_terminal(trainer)
    evaluation = run.evaluation if evaluation_rows is not None else None
    schedule = InjectionSchedule(model.words_first, model.auxiliary_fade)
    trainer.set_up(built.processor, loss_weights, model.adapter_learning_rate, schedule, description, evaluation)
    trainer.number_objective = model.number_objective
    return trainer


def say_votes(train: MerDataset, objective: str) -> list[str]:
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
