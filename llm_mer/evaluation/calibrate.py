"""``llm-mer calibrate``: temperatures and pool weights, fitted on the validation split and kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llm_mer.checkpoints.calibration import CALIBRATION_SPLIT, Calibration, Pool, Temperature, answering_weights_digest
from llm_mer.data.folds import check_fold
from llm_mer.data.reading import find_split, read_utterances
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.options import CalibrateConfig
from llm_mer.evaluation.proper_scores import answer_arrays
from llm_mer.inference.answer_values import poolable_scores
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction, require_finite_answers
from llm_mer.model.prompt_lengths import backbone_positions, check_prompt_lengths
from llm_mer.prompting.tasks import Task
from llm_mer.scoring.pooling import MAX_WEIGHT, fit_pool, pool
from llm_mer.scoring.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, scale_by_temperature
from llm_mer.storage.locks import lock_output


def calibrate(config: CalibrateConfig) -> Calibration:
    """Fit the temperatures, and write them into the checkpoint (:class:`~llm_mer.checkpoints.calibration.Calibration`).

    Raises:
        UserError: another split than ``valid``, several processes, a checkpoint or data that do not fit, or nothing that
            gives probabilities.
    """
    if config.split != CALIBRATION_SPLIT:
        raise UserError(
            f"--split {config.split}: temperatures are fitted on {CALIBRATION_SPLIT} alone; on test they would know the "
            "answers they are judged by, on train the model is surer than it is elsewhere"
        )
    if config.batch_size < 1:
        raise UserError(f"--batch_size {config.batch_size}: it must be at least 1")
    processes = ProcessGroup.join()
    if processes.world_size > 1:
        raise UserError(f"calibrate runs in one process, {processes.world_size} were started")
    pipeline = MerPipeline.from_pretrained(
        config.checkpoint,
        backbone=config.backbone,
        adapter=config.adapter,
        device=processes.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
        calibration=False,
    )
    splits, made, fingerprint = read_utterances(config.data, config.folds, config.fold)
    utterances = find_split(splits, config.split, config.data)
    where = f"{config.data}, split {config.split!r}"
    check_fold(pipeline.description.data, made, fingerprint, config.data)
    pipeline.check_features(utterances, made, where)
    tasks = pipeline.named_tasks(config.tasks)
    dataset = pipeline.questions(utterances, tasks, languages=config.languages)
    pipeline.long_clips = config.long_clips or pipeline.predictor.processor.long_clips
    pipeline.check_dataset_lengths(dataset, where)
    positions = None if pipeline.description.backbone is None else backbone_positions(pipeline.predictor.core.config)
    check_prompt_lengths(pipeline.predictor.processor, dataset, positions, where)
    with lock_output(pipeline.folder / "calibration"):
        predictions = pipeline.predictor.predict(dataset, progress="calibrate")
        require_finite_answers(predictions)
        temperatures = fit(predictions, tasks)
        if not temperatures:
            raise UserError(f"{where}: no labelled utterance of a task that the checkpoint gives probabilities for")
        digest = answering_weights_digest(pipeline.folder)
        if digest is None:
            raise UserError(f"{pipeline.folder}: it has no weights that temperatures could belong to")
        pools = fit_pools(predictions, tasks)
        calibration = Calibration(digest, fingerprint, temperatures, pools, pipeline.predictor.precision)
        calibration.save(pipeline.folder)
    return calibration


def answers_by_question(
    predictions: Sequence[Prediction], tasks: Sequence[Task]
) -> Iterator[tuple[Task, str, list[Prediction]]]:
    """Each task and language with its answers that have truths and probabilities, in the order of the tasks."""
    for task in tasks:
        known = [p for p in predictions if p.task == task.name and p.truth is not None and p.log_probabilities]
        for language in sorted({p.language for p in known}):
            yield task, language, [p for p in known if p.language == language]


def fit(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> tuple[Temperature, ...]:
    """The temperature of each task and language that has truths and probabilities, in the order of the tasks."""
    found = []
    for task, language, own in answers_by_question(predictions, tasks):
        log_probs, truth = answer_arrays(task, own)
        temperature = fit_temperature(log_probs, truth)
        rows = np.arange(len(truth))
        before, after = (-scale_by_temperature(log_probs, t)[rows, truth].mean() for t in (1.0, temperature))
        found.append(Temperature(task.name, language, temperature, len(truth), float(before), float(after)))
    return tuple(found)


def fit_pools(predictions: Sequence[Prediction], tasks: Sequence[Task]) -> tuple[Pool, ...]:
    """The weights of each task and language of which the answers carry several distributions, in the order of the tasks."""
    found = []
    for task, language, own in answers_by_question(predictions, tasks):
        scores = [poolable_scores(p, task) for p in own]
        names = list(scores[0])
        if len(names) < 2:
            continue
        stacked = np.array([[values[name] for name in names] for values in scores])  # (N, K, C)
        _, truth = answer_arrays(task, own)
        alone = {name: _fitted(stacked[:, [k]], truth)[1] for k, name in enumerate(names)}
        weights, nll = _fitted(stacked, truth)
        shares = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
        found.append(Pool(task.name, language, shares, len(own), alone, nll))
    return tuple(found)


def _fitted(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """``(N, K, C)``: the weights of a pool, and the mean NLL with them."""
    weights = fit_pool(scores, truth)
    return weights, float(-pool(scores, weights)[np.arange(len(truth)), truth].mean())


def table(calibration: Calibration, checkpoint: str) -> str:
    """``emotion en  T 1.83  n=120  NLL 2.970 → 1.901``, a line a temperature, then one a pool."""
    lines = []
    for one in calibration.temperatures:
        line = f"{one.task:<10} {one.language:<3} T {one.temperature:.3f}  n={one.n}"
        line += f"  NLL {one.nll_before:.3f} → {one.nll_after:.3f} on {CALIBRATION_SPLIT}"
        if one.temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE):
            line += "  (as far as a fit goes: every answer of these is right, or the answers tell nothing)"
        lines.append(line)
    for pooled in calibration.pools:
        parts = " + ".join(f"{weight:.3f} {name}" for name, weight in pooled.weights.items())
        alone = ", ".join(f"{name} {nll:.3f}" for name, nll in pooled.nll_alone.items())
        line = f"{pooled.task:<10} {pooled.language:<3} pool {parts}  n={pooled.n}"
        line += f"  NLL {pooled.nll:.3f} on {CALIBRATION_SPLIT} (alone: {alone})"
        if max(pooled.weights.values()) > 0.9 * MAX_WEIGHT:
            line += "  (as far as a fit goes)"
        lines.append(line)
    return "\n".join([*lines, f"written to {Path(checkpoint)}"])
