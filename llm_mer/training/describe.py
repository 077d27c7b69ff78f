"""What the checkpoint will say of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from llm_mer.adapters import reference_of
from llm_mer.checkpoints.backbone_reference import save_backbone_reference
from llm_mer.checkpoints.description import CheckpointDescription, stack_versions
from llm_mer.data.corruption import MissingSteps, Reader
from llm_mer.data.dataset import MerDataset
from llm_mer.model.modeling_mer import conditional_generation_of, describe_parameters
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.model_builder import BuiltModel, stand_in_config
from llm_mer.training.options import DataArguments, ModelArguments
from llm_mer.training.run_data import RunData


def describe_run(
    run: RunData,
    built: BuiltModel,
    data: DataArguments,
    model: ModelArguments,
    training: MerTrainingArguments,
    loss_weights: dict[str, float],
) -> CheckpointDescription:
    """What the checkpoint will say of itself. Copies a local backbone beside the checkpoints (main process only)."""
    from llm_mer.scoring.dialogue_decoder import estimate_shift

    output = Path(str(training.output_dir))
    reference = None
    if built.backbone_source is not None:
        dtype = next(built.model.get_input_embeddings().parameters()).dtype
        save = model.save_backbone if training.process_index == 0 else "never"
        reference = save_backbone_reference(
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
        adapter=reference_of(model.adapter),
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
