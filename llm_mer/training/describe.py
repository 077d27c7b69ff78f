"""Describing a run: the metadata saved in its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from llm_mer.adapters import reference_of
from llm_mer.checkpoints.backbone_reference import save_backbone_reference
from llm_mer.checkpoints.description import BackboneReference, CheckpointDescription, stack_versions
from llm_mer.checkpoints.run_differences import RunSetup, questions_digest
from llm_mer.data.corruption import MissingSteps, ModelInputSpec
from llm_mer.data.dataset import MerDataset
from llm_mer.model.modeling_mer import conditional_generation_of, describe_parameters
from llm_mer.prompting.templates import PromptTemplate
from llm_mer.training.model_builder import BuiltModel, stand_in_config
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import RunData


def describe_run(
    config: RunConfig, run: RunData, built: BuiltModel, loss_weights: dict[str, float]
) -> CheckpointDescription:
    """The description saved in the checkpoint. Copies a local backbone beside the checkpoints (main process only)."""
    data, model, training = config.data, config.model, config.training
    reference = _save_backbone_reference(config, built)
    identity = None if reference is None else {"name": reference.name, "fingerprint": reference.fingerprint}
    baselines, shift_probability = _baselines(run)
    return CheckpointDescription(
        model=_model_entry(built),
        processor=built.processor.to_dict(),
        backbone=reference,
        data={
            "source": run.description.get("source", Path(data.data).name),
            "fingerprint": run.fingerprint,
            "train_questions": len(run.train),
            "features": run.description.get("features"),
            "missing": missing_steps(run.train),
            "drawn": run.train.drawn,
            "labels": run.train.label_names(),
            **({"columns": run.description["columns"]} if "columns" in run.description else {}),
            **({"fold": run.description["fold"]} if "fold" in run.description else {}),
        },
        baselines=baselines,
        shift_probability=shift_probability,
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
        adapter=reference_of(model.adapter),
        run=run_setup(config, run, built.processor.prompts, identity),
    )


def _save_backbone_reference(config: RunConfig, built: BuiltModel) -> BackboneReference | None:
    """Reference to the backbone, copied where ``save_backbone`` says so; None for an adapter alone."""
    if built.backbone_source is None:
        return None
    model, training = config.model, config.training
    dtype = next(built.model.get_input_embeddings().parameters()).dtype
    save = model.save_backbone if training.process_index == 0 else "never"
    return save_backbone_reference(
        built.backbone_source,
        Path(str(training.output_dir)),
        save,
        model.quantization,
        str(dtype).removeprefix("torch."),
    )


def _model_entry(built: BuiltModel) -> dict[str, Any]:
    """The options from which the model is rebuilt."""
    model_config = conditional_generation_of(built.model).config
    backbone_config = model_config.text_config
    text_config = backbone_config.to_dict() if isinstance(backbone_config, PreTrainedConfig) else None
    if text_config is not None:
        text_config.pop("_name_or_path", None)  # a local folder is meaningless elsewhere
    return {
        "text_config": text_config,
        "adapter": model_config.adapter,
        "adapter_config": model_config.adapter_config,
        "text_source": model_config.text_source,
        "lora_sharing": model_config.lora_sharing,
        **({"read_out": model_config.read_out} if model_config.read_out else {}),
    }


def _baselines(run: RunData) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Constant-answer statistics of every task's training truths, and shift probabilities of class tasks with dialogues."""
    from llm_mer.scoring.dialogue_decoder import estimate_shift

    baselines: dict[str, dict[str, Any]] = {}
    shift_probability: dict[str, float] = {}
    for task in run.tasks:
        truths = run.train.truths(task)
        if task.kind == "classification":
            baselines[task.name] = {"counts": {name: truths.count(name) for name in task.label_names}}
            states, speakers, dialogues = run.train.labels_by_turn(task)
            if states:
                shift_probability[task.name] = float(estimate_shift(states, speakers, dialogues))
        else:
            scores = np.array([float(t) for t in truths])
            baselines[task.name] = {"mean": float(scores.mean()), "median": float(np.median(scores)), "n": len(scores)}
    return baselines, shift_probability


def run_setup(
    config: RunConfig, run: RunData, prompts: Sequence[PromptTemplate], backbone: dict[str, Any] | None
) -> RunSetup:
    """All that the result of a run follows from; ``backbone`` is its name and fingerprint, None for an adapter alone."""
    return RunSetup(
        options=config.options(),
        data_fingerprint=run.fingerprint,
        questions_sha256=questions_digest(run.tasks, prompts),
        backbone=backbone,
        tasks=[task.name for task in run.tasks],
        train_questions=len(run.train),
        processes=config.training.world_size,
    )


def with_missing_steps(config: RunConfig, run: RunData) -> RunData:
    """The run with steps missing from its training utterances as ``missing_rate`` says; statistics are of whole ones."""
    data, model = config.data, config.model
    if not data.missing_rate:
        return run
    text_source = "features" if model.backbone == "none" else model.text_source
    input_spec = ModelInputSpec(stand_in_config(config, run).modalities, text_source)
    train = run.train.corrupted(MissingSteps(data.missing_rate, data.missing_seed, input_spec))
    if run.speaker_effects:
        train.know_speakers(run.speaker_effects)
    return dataclasses.replace(run, train=train)


def missing_steps(dataset: MerDataset) -> dict[str, float] | None:
    """Rate and seed of the steps missing from a dataset, None where it is complete."""
    found = next((c for c in dataset.corruptions if isinstance(c, MissingSteps)), None)
    return None if found is None else {"rate": found.amount, "seed": found.seed}
