"""Model cards: scores with n, baseline and interval, training data, and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.run_differences import without_folders
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.rows import EVALUATION, Evaluation, Row
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.prompting.tasks import Task
from llm_mer.reporting.wording import describe_resampling

CARD_FILE = "README.md"
LIBRARY = "llm_mer"
BASELINE_LABELS = {"accuracy": "majority", "mae": "mean"}
"""Name of the constant-answer baseline, by metric."""
SHOWN_METRICS = ("accuracy", "weighted_f1", "ua", "mae", "rmse", "corr", "ccc")
"""Metrics in the table."""


def model_card(
    folder: Path, evaluations: Sequence[Path] = (), license: str | None = None, repository: str | None = None
) -> str:
    """Build the card as Markdown with the hub's YAML metadata. It contains no local absolute paths.

    Args:
        evaluations: folders with ``evaluation.json``; by default every one under ``folder/evaluation``.
        license: of the weights, by its name on the hub; without one the card says that none was stated.
        repository: name on the hub for the loading example.

    Raises:
        UserError: not a checkpoint, a missing evaluation, or one of another checkpoint.
    """
    from huggingface_hub import ModelCard

    description = CheckpointDescription.load(folder)
    manifest = RunManifest.load(folder).without_paths() if (folder / MANIFEST).is_file() else None
    folders = list(evaluations) or sorted(path.parent for path in (folder / "evaluation").rglob(EVALUATION))
    evaluations_found = [Evaluation.load(place) for place in folders]
    for place, evaluation in zip(folders, evaluations_found, strict=True):
        _check_same_checkpoint(place, evaluation, description, manifest)
    name = (repository or folder.resolve().name).rpartition("/")[2]
    parts = [
        f"# {name}",
        _about_section(description),
        "## Scores",
        _scores_section(evaluations_found, manifest),
        "## How to load it",
        _loading_section(description, repository or folder.resolve().name),
        "## Training",
        _training_section(description, manifest),
        "## Limits",
        _limits_section(description),
        "## Licence",
        _licence_section(description, license),
    ]
    card = ModelCard(
        f"---\n{_metadata(description, evaluations_found, name, license).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    )
    return str(card)


def _check_same_checkpoint(
    place: Path, evaluation: Evaluation, description: CheckpointDescription, manifest: RunManifest | None
) -> None:
    evaluated_run, current = evaluation.checkpoint.get("run") or {}, manifest
    if evaluation.checkpoint.get("adapter") != description.model["adapter"] or (
        current is not None and evaluated_run.get("weights_sha256") not in (None, current.weights_sha256)
    ):
        raise UserError(f"{place}: the evaluation is of another checkpoint; evaluate this one, or leave the folder out")


def _tasks(description: CheckpointDescription) -> list[Task]:
    from llm_mer.model.processing_mer import MerProcessor

    return MerProcessor.from_dict(description.processor, None).tasks


def _languages(description: CheckpointDescription) -> list[str]:
    return sorted({str(prompt["language"]) for prompt in description.processor["prompts"]})


def _modalities(description: CheckpointDescription) -> list[str]:
    adapter_options: dict[str, Any] = description.model["adapter_config"] or {}
    return [name for name in description.processor["feature_sizes"] if adapter_options.get(f"use_{name}", True)]


def _pipeline_tag(description: CheckpointDescription) -> str:
    modalities = _modalities(description)
    return f"{'video' if 'vision' in modalities else 'audio' if 'audio' in modalities else 'text'}-classification"


def _metadata(description: CheckpointDescription, evaluations: Sequence[Evaluation], name: str, license: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=_pipeline_tag(description),
            task_name=row.task,
            dataset_type="custom",
            dataset_name=evaluation.data,
            dataset_config=row.language,
            dataset_split=evaluation.split,
            metric_type=metric,
            metric_name=f"{metric} ({row.task}, {row.language}, n={row.n})",
            metric_value=round(row.metrics[metric], 6),
        )
        for evaluation in evaluations
        for row in evaluation.rows
        for metric in SHOWN_METRICS
        if (row.condition, row.subset) == (AS_IS, EVERYTHING) and math.isfinite(row.metrics.get(metric, math.nan))
    ]
    backbone = description.backbone
    from_hub = backbone is not None and backbone.fingerprint is None
    return ModelCardData(
        language=_languages(description),
        license=license,
        library_name=LIBRARY,
        pipeline_tag=_pipeline_tag(description),
        tags=[
            "emotion-recognition",
            "multimodal",
            description.model["adapter"],
            *(["lora"] if _has_lora(description) else []),
        ],
        base_model=backbone.name if from_hub and backbone is not None else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
        base_model_relation="adapter" if from_hub else None,
    )


def _has_lora(description: CheckpointDescription) -> bool:
    return description.backbone is not None and description.merged is None


def _about_section(description: CheckpointDescription) -> str:
    tasks = []
    for task in _tasks(description):
        answers = (
            ", ".join(task.label_names) if task.kind == "classification" else f"a number in {list(task.require_range())}"
        )
        tasks.append(f"- **{task.name}** ({task.kind}): {answers}")
    backbone = description.backbone
    answering = (
        "the adapter's own head, without a language model" if backbone is None else f"the language model {backbone.name}"
    )
    if description.merged is not None:
        answering += ", LoRA merged into its weights"
    elif backbone is not None:
        answering += ", tuned by LoRA"
    modality_list = ", ".join(_modalities(description))
    return (
        f"Recognises emotion in speech in {' and '.join(_languages(description))}: the fusion adapter "
        f"`{description.model['adapter']}` reads {modality_list}, and {answering} answers.\n\n" + "\n".join(tasks)
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _cells(row: Row) -> str:
    shown = []
    for metric in SHOWN_METRICS:
        if metric not in row.metrics:
            continue
        interval = row.intervals.get(metric)
        between = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval is not None else ""
        shown.append(f"{metric} {_number(row.metrics[metric])}{between}")
    return "; ".join(shown)


def _baseline(row: Row) -> str:
    return "; ".join(
        f"{BASELINE_LABELS.get(metric, metric)} {_number(row.baseline[metric])}"
        for metric in SHOWN_METRICS
        if metric in row.baseline
    )


def _scores_section(evaluations: Sequence[Evaluation], manifest: RunManifest | None) -> str:
    parts = []
    for evaluation in evaluations:
        overall_rows = [row for row in evaluation.rows if row.subset == EVERYTHING and row.condition == AS_IS]
        lines = [
            f"On `{evaluation.data}`, split `{evaluation.split}`; 95 % bootstrap intervals of {evaluation.resamples} "
            f"resamples{describe_resampling(overall_rows)} in brackets. The baseline is the best constant answer.",
            "",
            "| condition | task | language | n | scores | baseline | unparseable |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in evaluation.rows:
            if row.subset == EVERYTHING:
                lines.append(
                    f"| {row.condition} | {row.task} | {row.language} | {row.n} | {_cells(row)} | {_baseline(row)} | "
                    f"{_number(row.unparseable_rate)} |"
                )
        lines += ["", *(f"- {warning}" for warning in evaluation.warnings)]
        parts.append("\n".join(lines).rstrip())
    if parts:
        return "\n\n".join(parts)
    text = "This checkpoint has not been evaluated with intervals (`llm-mer evaluate`)."
    measured = (
        {}
        if manifest is None
        else {k: v for k, v in manifest.metrics.items() if k.endswith(SHOWN_METRICS) and v is not None}
    )
    if manifest is not None and measured:
        split = manifest.options["data"].get("eval_split", "valid")
        text += f" At the end of training, on split `{split}`:\n\n"
        text += "\n".join(f"- `{name}` {_number(value)}" for name, value in measured.items())
    return text


def _loading_section(description: CheckpointDescription, name: str) -> str:
    example_arguments = {"vision": 'video="clip.mp4"', "audio": 'audio="clip.wav"', "text": 'text="I had no idea"'}
    fields = ", ".join(words for modality, words in example_arguments.items() if modality in _modalities(description))
    version = description.versions.get("llm_mer", "")
    return (
        f"With `llm_mer` {version} installed:\n\n```python\nfrom llm_mer import MerPipeline\n\n"
        f'pipeline = MerPipeline.from_pretrained("{name}")\nfor prediction in pipeline({fields}):\n'
        "    print(prediction.task, prediction.value)\n```"
    )


def _training_section(description: CheckpointDescription, manifest: RunManifest | None) -> str:
    data, training = description.data, description.training
    lines = [f"- data: {_data_name(description, manifest)}, fingerprint `{str(data.get('fingerprint'))[:12]}`"]
    if data.get("train_questions"):
        lines.append(f"- questions trained on: {data['train_questions']}")
    if data.get("features"):
        lines.append(
            "- features: " + ", ".join(f"{k} `{without_folders(v)}`" for k, v in data["features"].items() if v is not None)
        )
    parameters = training.get("parameters") or {}
    if parameters:
        lines.append(f"- parameters: {parameters['total']:,}, trained {parameters['trainable']:,}")
    if _has_lora(description) and training.get("lora"):
        lines.append("- LoRA: " + ", ".join(f"{name} {value}" for name, value in training["lora"].items()))
    lines += [
        f"- {name.replace('_', ' ')}: {training[name]}" for name in ("learning_rate", "epochs", "seed") if name in training
    ]
    if manifest is not None:
        machine = manifest.hardware
        lines.append(
            f"- computed on: {', '.join(machine.gpus) or machine.cpu}, {machine.processes} process(es), "
            f"precision {machine.mixed_precision}, {manifest.steps} steps"
        )
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in description.versions.items()))
    if manifest is not None:
        lines.append(f"\n`{MANIFEST}` holds every option; `llm-mer reproduce` trains again from it.")
    return "\n".join(lines)


def _data_name(description: CheckpointDescription, manifest: RunManifest | None) -> str:
    source = str(description.data.get("source"))
    if manifest is None:
        return source
    return f"`{manifest.options['data'].get('data')}` ({source})"


def _limits_section(description: CheckpointDescription) -> str:
    languages = " and ".join(_languages(description))
    outside_note = ""
    if description.backbone is not None:
        outside_note = (
            " `outside_mass` of an answer is the log-probability that the language model assigned to all other outputs."
        )
    lines = [
        f"- It is made for utterances in {languages}; text in another language is refused.",
        f"- It chooses among the answers above and never rejects all of them.{outside_note}",
        "- Scores are valid for the data they were measured on; recordings, speakers and cultures unlike the training data "
        "were not tested. Perceived emotion is a rater's judgement, not what a person feels.",
        "- Not for decisions about people.",
    ]
    return "\n".join(lines)


def _licence_section(description: CheckpointDescription, license: str | None) -> str:
    lines = [f"Weights: {license}." if license else "Weights: no licence was stated."]
    lines.append("The training data and the backbone have their own licences.")
    features = description.data.get("features") or {}
    if features.get("audio") == "egemaps":
        lines.append(
            "Sound is read with openSMILE's eGeMAPSv02, which is under the audEERING research licence (non-commercial)."
        )
    return " ".join(lines)
