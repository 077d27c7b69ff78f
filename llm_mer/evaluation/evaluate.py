"""``llm-mer evaluate``: what a checkpoint scores, beside the trivial baselines, with intervals, under named conditions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.adapters.base import MODALITIES, FusionAdapter
from llm_mer.data.dataset import MerDataset
from llm_mer.data.long_clips import REFUSE
from llm_mer.data.missing_values import check_transcript
from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import (
    AS_IS,
    DIALOGUE,
    GENERATION,
    NOISY_FEATURES,
    POOLED,
    READ_OUT,
    Condition,
    apply_condition,
    input_spec_of,
    parse_conditions,
    precompute_corrupted_features,
    withhold_adapter,
)
from llm_mer.evaluation.curves import areas
from llm_mer.evaluation.dependence import find_dependence
from llm_mer.evaluation.dialogue import check_dialogues
from llm_mer.evaluation.journal import JOURNAL, Journal, predict_all
from llm_mer.evaluation.options import EvaluateConfig, check_least
from llm_mer.evaluation.rows import Evaluation, save_evaluation, score_rows, table
from llm_mer.evaluation.subsets import DISTANCE, check_groupings
from llm_mer.evaluation.untuned import (
    PRIOR_CORRECTED,
    correct_for_prior,
    draw_untuned_examples,
    load_untuned_pipeline,
    untuned_digest,
)
from llm_mer.inference.answer_values import pooled_answer
from llm_mer.inference.dialogues import decode_dialogues
from llm_mer.inference.prediction import Prediction
from llm_mer.model.prompt_lengths import backbone_positions, check_prompt_lengths
from llm_mer.prompting.tasks import Task
from llm_mer.storage.watched_folder import watch_folder

if TYPE_CHECKING:
    from llm_mer.inference.pipeline import MerPipeline
    from llm_mer.inference.predictor import Predictor


@dataclass
class EvaluationPlan:
    """One store, read and checked, with nothing predicted yet.

    ``changed`` holds the dataset under each condition; ``settings`` all that the predictions come from.
    """

    place: str
    folder: Path
    dataset: MerDataset
    changed: dict[str, MerDataset]
    conditions: list[Condition]
    tasks: list[Task]
    fingerprint: str
    settings: dict[str, Any]


def output_folder(output: str, default: Path) -> Path:
    """Where files go. Raises :class:`UserError` for a file in its place."""
    folder = Path(output or default)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: it is a file, not a folder")
    return folder


def output_folders(config: EvaluateConfig) -> dict[str, Path]:
    """The output folder of each store: the one named, or with several stores one in it each, named like the store.

    Raises:
        UserError: a file in its place, or two stores of one name.
    """
    folder = output_folder(config.output, Path(config.checkpoint) / "evaluation")
    if len(config.data) == 1:
        return {config.data[0]: folder}
    places: dict[str, Path] = {}
    for place in config.data:
        name = Path(place).resolve().name
        same = next((other for other, path in places.items() if path.name == name), None)
        if same is not None:
            raise UserError(f"--data: {same} and {place} are both called {name!r}; evaluate them one by one")
        places[place] = output_folder("", folder / name)
    return places


def load_pipeline(config: EvaluateConfig, processes: ProcessGroup) -> MerPipeline:
    """The checkpoint, with the options of its answers.

    Raises:
        UserError: options out of range, or a checkpoint that does not fit.
    """
    from llm_mer.inference.pipeline import MerPipeline

    check_least(config, {"resamples": 1, "batch_size": 1, "seed": 0})
    check_groupings(config.by)
    if not config.checkpoint:
        return load_untuned_pipeline(config, processes.device)
    if config.examples:
        raise UserError("--examples: a checkpoint is asked as it was trained, without; they are for --backbone alone")
    if config.prompts:
        raise UserError(
            "--prompts: a checkpoint is asked with the prompts it was trained with; `llm-mer prompts compare` tries others"
        )
    pipeline = MerPipeline.from_pretrained(
        config.checkpoint,
        backbone=config.backbone,
        adapter=config.adapter,
        device=processes.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        generate=config.generate,
        score_statistic=config.score_statistic,
        answer="scored" if config.answer == "all" else config.answer,
        keep_features=config.keep_features,
        calibration=config.calibration,
        long_clips=config.long_clips or REFUSE,
        windows=config.windows,
        window_overlap=config.window_overlap,
    )
    if config.long_clips is None and config.windows is None:
        pipeline.long_clips = pipeline.predictor.processor.long_clips
    if config.answer == "all" and not (pipeline.description.model.get("read_out") or pipeline.predictor.pool_weights):
        raise UserError(
            f"--answer all: {config.checkpoint} has its scored answers alone; train with read_out: true, or with "
            "auxiliary_head: true and run `llm-mer calibrate`"
        )
    return pipeline


def plan(config: EvaluateConfig, pipeline: MerPipeline, place: str, folder: Path) -> EvaluationPlan:
    """Read a store and check everything that can be checked before the first prediction.

    Raises:
        UserError: a split, task, language or condition that does not fit.
    """
    from llm_mer.checkpoints.description import stack_versions
    from llm_mer.checkpoints.integrity import checkpoint_fingerprint
    from llm_mer.data.folds import check_fold
    from llm_mer.data.reading import find_split, read_utterances

    splits, made, fingerprint = read_utterances(place, config.folds, config.fold)
    utterances = find_split(splits, config.split, place)
    description = pipeline.description
    check_fold(description.data, made, fingerprint, place)
    pipeline.check_features(utterances, made, f"{place}, split {config.split!r}")
    tasks = pipeline.named_tasks(config.tasks)
    dataset = pipeline.questions(utterances, tasks, languages=config.languages, limit=config.limit, limit_seed=config.seed)
    if not dataset.rows:
        spoken = ", ".join(sorted({dataset.language(row) for row in range(len(utterances))}))
        wanted = ", ".join(config.languages or []) or "none"
        raise UserError(f"{place}, split {config.split!r}: no utterance in --languages {wanted}; it holds {spoken}")
    if not len(dataset):
        raise UserError(f"{place}, split {config.split!r}: no utterance has a label for {', '.join(t.name for t in tasks)}")
    pipeline.check_dataset_lengths(dataset, f"{place}, split {config.split!r}")
    for identifier, _, text in dataset.transcripts():
        check_transcript(text, f"utterance {identifier!r}")
    predictor = pipeline.predictor
    examples = draw_untuned_examples(config, pipeline, dataset, splits, place) if config.examples else {}
    if predictor.processor.tokenizer is not None:
        positions = backbone_positions(predictor.core.config)
        check_prompt_lengths(predictor.processor, dataset, positions, f"{place}, split {config.split!r}")
    available = modalities_of(pipeline)
    reader = input_spec_of(description, available, folder / NOISY_FEATURES)
    conditions = parse_conditions(config.conditions, available, description.backbone is not None)
    if config.answer == "pooled" and any(condition.withholds_adapter for condition in conditions.values()):
        raise UserError(
            "--conditions without:adapter: leaves out the pseudo tokens alone, and --answer pooled would still hear the "
            "adapter's own head; leave one of them out"
        )
    changed = {name: apply_condition(dataset, condition, config.seed, reader) for name, condition in conditions.items()}
    if config.dialogue_decoder != "none":
        if dataset.drawn is not None:
            raise UserError(
                "--limit: leaves gaps in dialogues, and --dialogue_decoder needs them whole; leave one of them out"
            )
        check_dialogues(dataset, tasks, description.shift_probability, config.checkpoint)
    options = ("split", "tasks", "languages", "limit", "seed", "batch_size", "generate", "score_statistic", "keep_features")
    settings = {name: getattr(config, name) for name in (*options, "answer")} | {
        "checkpoint": checkpoint_fingerprint(pipeline.folder) if config.checkpoint else untuned_digest(pipeline),
        "backbone": config.backbone,
        "data": fingerprint,
        "device": pipeline.predictor.device.type,
        "precision": pipeline.predictor.precision,
        "versions": stack_versions(),
    }
    if examples:
        settings["examples"] = examples
    if config.windows is not None:
        settings["windows"] = [config.windows, config.window_overlap]
    if not config.calibration:  # with it, its file is part of the checkpoint's digest
        settings["calibration"] = False
    return EvaluationPlan(place, folder, dataset, changed, list(conditions.values()), tasks, fingerprint, settings)


def modalities_of(pipeline: MerPipeline) -> list[str]:
    """What the checkpoint's adapter reads."""
    adapter = pipeline.predictor.adapter
    assert isinstance(adapter, FusionAdapter)
    return [m for m in MODALITIES if m in adapter.config.modalities]


def predict_conditions(
    config: EvaluateConfig,
    pipeline: MerPipeline,
    planned: EvaluationPlan,
    processes: ProcessGroup,
    journal: Journal | None,
    progress: bool,
) -> dict[str, list[Prediction]]:
    """Answers as is and under every condition, on every process."""
    predictor = pipeline.predictor
    predictor.warns_of_distance = False  # of a whole split, the share that is far is told
    conditions = {condition.name: condition for condition in planned.conditions}
    by_condition = {}
    for name, dataset in {AS_IS: planned.dataset, **planned.changed}.items():
        predictor.generate = config.generate and name == AS_IS
        precompute_corrupted_features(
            dataset, predictor.adapter.uses_context, processes, f"features, {name}" if progress else None
        )
        with withhold_adapter(predictor.adapter, conditions.get(name)):
            by_condition[name] = predict_all(predictor, dataset, name, processes, journal, progress)
    return by_condition


def score(
    config: EvaluateConfig, pipeline: MerPipeline, planned: EvaluationPlan, by_condition: dict[str, list[Prediction]]
) -> Evaluation:
    """The scores of predictions; those of the dialogue decoder are added to ``by_condition``."""
    from llm_mer.checkpoints.run_manifest import read_manifest
    from llm_mer.evaluation.adapter_warnings import (
        diagnose,
        find_cut,
        find_far,
        find_flags,
        find_little_known_speakers,
        find_unread,
    )

    description, backbone = pipeline.description, pipeline.description.backbone
    adapter, class_task = pipeline.predictor.adapter, pipeline.predictor.processor.class_task
    evaluation = Evaluation(
        name=Path(config.checkpoint or str(config.backbone)).resolve().name,
        checkpoint={
            "adapter": description.model["adapter"],
            "modalities": modalities_of(pipeline),
            "backbone": None if backbone is None else backbone.name,
            "precision": pipeline.predictor.precision,
            "parameters": description.training.get("parameters"),
            "seed": description.training.get("seed"),
            "trained_on": description.data,
            "versions": description.versions,
            "shift_probability": description.shift_probability,
            "run": read_manifest(pipeline.folder),
            **({"examples": planned.settings["examples"]} if config.examples else {}),
        },
        data=f"{Path(planned.place).name} ({planned.fingerprint[:12]})",
        split=config.split,
        drawn=planned.dataset.drawn,
        checkpoint_sha256=planned.settings["checkpoint"],
        seed=config.seed,
        resamples=config.resamples,
        warnings=[
            *diagnose(pipeline.predictor.adapter, by_condition[AS_IS]),
            *find_cut(by_condition[AS_IS]),
            *find_little_known_speakers(by_condition[AS_IS]),
            *find_unread(by_condition[AS_IS]),
            *find_far(by_condition[AS_IS]),
            *find_flags(by_condition[AS_IS]),
            *_calibration_warnings(pipeline, planned, config.split),
            *filter(None, [pipeline.predictor.rounded_logits()]),
            *([SEEN_IN_TRAINING] if config.split == "train" else []),
        ],
        conditions=planned.conditions,
        diagnostics=adapter.diagnostic_info(() if class_task is None else class_task.label_names),
    )
    by = list(config.by)
    if DISTANCE not in by and any(find_far(answers) for answers in by_condition.values()):
        by.append(DISTANCE)
    shared: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed, "by": by}
    for task in planned.tasks:
        for name in [AS_IS, *planned.changed]:
            evaluation.rows += score_rows(name, by_condition[name], task, **shared)
        if config.generate:
            evaluation.rows += score_rows(GENERATION, by_condition[AS_IS], task, use_parsed=True, **shared)
        if not config.checkpoint:
            answers, prior = correct_for_prior(pipeline, by_condition[AS_IS], task)
            by_condition.setdefault(PRIOR_CORRECTED, []).extend(answers)
            evaluation.checkpoint.setdefault("answer_prior", {})[task.name] = prior
            evaluation.rows += score_rows(PRIOR_CORRECTED, answers, task, **shared)
        if config.answer == "all":
            for name, answers in other_answers(pipeline.predictor, by_condition[AS_IS], task).items():
                by_condition.setdefault(name, []).extend(answers)
                evaluation.rows += score_rows(name, answers, task, **shared)
        if config.dialogue_decoder != "none" and task.kind == "classification":
            own = [p for p in by_condition[AS_IS] if p.task == task.name]
            decoded = decode_dialogues(own, task, description.shift_probability[task.name], config.dialogue_decoder)
            by_condition.setdefault(DIALOGUE, []).extend(decoded)
            evaluation.rows += score_rows(DIALOGUE, decoded, task, **shared)
        found = find_dependence(
            task, by_condition, planned.conditions, config.resamples, config.seed, with_backbone=backbone is not None
        )
        evaluation.dependence += [] if found is None else [found]
    evaluation.areas = areas(evaluation.rows, planned.conditions, AS_IS)
    return evaluation


def other_answers(predictor: Predictor, predictions: list[Prediction], task: Task) -> dict[str, list[Prediction]]:
    """What else the model answers to a task: the read-out and the pool, as far as it has them for every question."""
    own = [p for p in predictions if p.task == task.name]
    found = {}
    if all(p.read_out is not None for p in own):
        found[READ_OUT] = [p.from_read_out() for p in own]
    weights = predictor.pool_weights
    if all((p.task, p.language) in weights for p in own):
        found[POOLED] = [pooled_answer(p, task, weights, predictor.score_statistic) for p in own]
    return found


SEEN_IN_TRAINING = (
    "split 'train' is what models are trained on: a model that was trained on these utterances knows their answers, and its "
    "scores here do not say how it does on new ones"
)


def _calibration_warnings(pipeline: MerPipeline, planned: EvaluationPlan, split: str) -> list[str]:
    from llm_mer.checkpoints.calibration import CALIBRATION_SPLIT, Calibration

    fitted = Calibration.load(pipeline.folder) if pipeline.predictor.temperatures else None
    if fitted is None:
        return []
    note = fitted.other_precision(pipeline.predictor.precision)
    warnings = [] if note is None else [note]
    if split == CALIBRATION_SPLIT and fitted.data == planned.fingerprint:
        pooled = " and every score of pooled answers" if pipeline.predictor.pool_weights else ""
        warnings.append(
            f"the temperatures were fitted on this split, {split!r}: its NLL, Brier and ECE{pooled} flatter the checkpoint"
        )
    return warnings


def evaluate(config: EvaluateConfig, progress: bool = True) -> tuple[Evaluation, dict[str, list[Prediction]]]:
    """Evaluate a checkpoint on one store; returns the scores and the predictions by condition, and writes no table.

    Raises:
        UserError: a checkpoint, split, task, language or condition that does not fit.
    """
    if len(config.data) != 1:
        raise UserError(f"--data {' '.join(config.data)}: name one store")
    processes = ProcessGroup.join()
    pipeline = load_pipeline(config, processes)
    (folder,) = output_folders(config).values()
    planned = plan(config, pipeline, config.data[0], folder)
    by_condition = predict_conditions(config, pipeline, planned, processes, None, progress)
    return score(config, pipeline, planned, by_condition), by_condition


def evaluate_checkpoint(config: EvaluateConfig) -> str | None:
    """Evaluate each store, write its files, return the tables (on the first process; else None).

    Finished batches wait in ``predictions.partial.jsonl`` of the output folder until all is written, so an interrupted
    call goes on where it stopped.
    """
    processes = ProcessGroup.join()
    folders = output_folders(config)
    with lock_outputs(list(folders.values()), processes):
        return _evaluate_into(config, folders, processes)


def _evaluate_into(config: EvaluateConfig, folders: dict[str, Path], processes: ProcessGroup) -> str | None:
    pipeline = load_pipeline(config, processes)
    plans = [plan(config, pipeline, place, folder) for place, folder in folders.items()]
    journals = (
        [Journal.open(planned.folder / JOURNAL, planned.settings) for planned in plans] if processes.is_first else None
    )
    texts = []
    for number, planned in enumerate(plans):
        journal = None if journals is None else journals[number]
        with watch_folder(planned.folder) if processes.is_first else nullcontext():
            by_condition = predict_conditions(config, pipeline, planned, processes, journal, progress=True)
        if journal is None:
            continue
        evaluation = score(config, pipeline, planned, by_condition)
        planned.folder.mkdir(parents=True, exist_ok=True)
        save_evaluation(planned.folder, evaluation, by_condition)
        journal.remove()
        head = [f"{planned.place}:"] if len(plans) > 1 else []
        warnings = [f"warning: {w}" for w in evaluation.warnings]
        head += [f"--limit: {evaluation.drawn}"] if evaluation.drawn else []
        texts.append("\n".join([*head, *warnings, table(evaluation), f"written to {planned.folder}"]))
    processes.gather(None)  # nobody leaves before the files are there
    return "\n\n".join(texts) if processes.is_first else None
