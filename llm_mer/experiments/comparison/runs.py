"""One training of a comparison and its predictions on the scored split."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.adapters.base import MODALITIES
from llm_mer.data.folds import FOLDS_FILE
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import (
    AS_IS,
    DIALOGUE,
    NOISY_FEATURES,
    Condition,
    apply_condition,
    input_spec_of,
    parse_conditions,
    precompute_corrupted_features,
    withhold_adapter,
)
from llm_mer.evaluation.rows import PREDICTIONS, save_predictions
from llm_mer.experiments.comparison.results import RUN, RunResult, RunSettings
from llm_mer.experiments.comparison.systems import FULL, PlannedRun, System
from llm_mer.experiments.options import CompareConfig
from llm_mer.inference.dialogues import decode_dialogues
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.storage.system_errors import naming_path
from llm_mer.storage.temporary_folders import temporary_folder

if TYPE_CHECKING:
    from llm_mer.data.dataset import MerDataset
    from llm_mer.data.schema import Utterance
    from llm_mer.inference.prediction import Prediction
    from llm_mer.training.run_config import RunConfig
    from llm_mer.training.trainer import HeadTrainer, MerTrainer

logger = logging.getLogger(__name__)


def conditions_of(
    config: CompareConfig, system: System, available: list[str], with_backbone: bool = True
) -> dict[str, Condition]:
    """The conditions a system can be scored under; an ablation without the modality a condition names does without it."""
    found: dict[str, Condition] = {}
    for text in config.conditions:
        try:
            found |= parse_conditions([text], available, with_backbone)
        except UserError as error:
            if system.ablation == FULL:
                raise
            logger.warning("%s: %s", system.name, error)
    return found


def base_config(config: CompareConfig, adapter: str) -> RunConfig:
    """The YAML file with the overrides, for one adapter: what every run of it starts from."""
    from llm_mer.training.parsing import parse_arguments

    arguments = ["--config", config.config, "--adapter", adapter]
    for text in config.overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"overrides: {text!r}; write option=value")
        arguments += [f"--{name}", value]
    base = parse_arguments(arguments)
    if base.training.given["push_to_hub"]:
        raise UserError("push_to_hub: true, but a comparison pushes nothing; leave it out (llm-mer push does)")
    return base


def base_of_run(config: CompareConfig, run: PlannedRun, base: RunConfig | None = None) -> RunConfig:
    """What one run starts from: the YAML file with the overrides for its adapter, on its fold."""
    base = base_config(config, run.system.adapter) if base is None else base
    if run.fold is None:
        return base
    return base.replace(folds=str(Path(config.output) / FOLDS_FILE), fold=run.fold)


def compare_command(config: CompareConfig, run: PlannedRun) -> list[str]:
    """The command that is recorded in the manifest of a comparison's run."""
    return ["llm-mer", "compare", "--config", config.config, f"({run})"]


def run_config(base: RunConfig, system: System, seed: int, folder: Path) -> RunConfig:
    """One training of a comparison. Data order follows the seed alone, so it is the same for every system."""
    from llm_mer.training.parsing import parse_changes

    changes: dict[str, Any] = parse_changes(system.adapter, system.options)
    if system.backbone:
        changes["backbone"] = system.backbone
    return base.replace(**{"output_dir": str(folder), "seed": seed, "data_seed": seed, **changes})


def train_and_predict(
    config: CompareConfig, base: RunConfig, system: System, seed: int, folder: Path, settings: RunSettings
) -> RunResult:
    """One training and its predictions on the scored split under every condition; nothing is written until all is done.

    The languages that are scored are those of the YAML file and the overrides, ``base``: a system trained on one of them is
    scored on all.
    """
    with temporary_folder("llm-mer-compare-") as scratch:
        result = _train_and_predict(config, base, system, seed, folder, settings, str(scratch / "run"))
    gc.collect()
    return result


@dataclass
class _ScoringPlan:
    """What a system is scored on: the dataset as it is, and under each condition."""

    dataset: MerDataset
    modalities: list[str]
    conditions: dict[str, Condition]
    conditioned: dict[str, MerDataset]


def _train_and_predict(
    config: CompareConfig,
    base: RunConfig,
    system: System,
    seed: int,
    folder: Path,
    settings: RunSettings,
    scratch: str,
) -> RunResult:
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.model.modeling_mer import describe_parameters, fusion_adapter_of
    from llm_mer.training.run import prepare_run, save_final

    chosen = run_config(base, system, seed, folder)
    if not config.keep_models:
        chosen = chosen.replace(output_dir=scratch, save_backbone="never")
    splits, _, _ = read_utterances(chosen.data.data, chosen.data.folds, chosen.data.fold)
    scored = find_split(splits, config.split, chosen.data.data)  # a wrong split is reported before the training
    run = prepare_run(chosen, compare_command(config, PlannedRun(system, seed, chosen.data.fold)))
    trainer = run.trainer
    assert trainer.model is not None
    assert trainer.description is not None
    tasks, shifts = trainer.processor.tasks, trainer.description.shift_probability
    if config.dialogue_decoder and any(t.kind == "classification" and t.name not in shifts for t in tasks):
        raise UserError(f"the training data of {chosen.data.data} had no dialogues: no p0 for the dialogue decoder")
    plan = _plan_scoring(config, base, system, seed, chosen, scored, trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    by_condition, milliseconds = _predict_conditions(trainer, chosen, plan)
    if config.dialogue_decoder:
        for task in tasks:
            if task.name in shifts:
                own = [p for p in by_condition[AS_IS] if p.task == task.name]
                by_condition.setdefault(DIALOGUE, []).extend(decode_dialogues(own, task, shifts[task.name]))
    folder.mkdir(parents=True, exist_ok=True)
    if config.keep_models:
        with naming_path(folder):
            save_final(trainer, folder)
    _save_compact_predictions(by_condition, folder / PREDICTIONS)
    result = RunResult(
        **asdict(settings),
        system=system.name,
        seed=seed,
        modalities=plan.modalities,
        parameters=describe_parameters(trainer.model),
        train_questions=int(trainer.description.data["train_questions"]),
        train_seconds=round(seconds, 2),
        steps=trainer.state.global_step,
        milliseconds_per_answer=round(milliseconds, 3),
        shift_probability=shifts,
        tasks={task.name: task.to_dict() for task in tasks},
        diagnostics=[asdict(info) for info in fusion_adapter_of(trainer.model).diagnostic_info()],
        predictions_sha256=file_sha256(folder / PREDICTIONS),
        fold=chosen.data.fold,
        baselines=trainer.description.baselines,
    )
    run.manifest.finish(folder, {}, trainer.state.global_step)
    write_json_atomically(folder / RUN, asdict(result))
    return result


def _plan_scoring(
    config: CompareConfig,
    base: RunConfig,
    system: System,
    seed: int,
    chosen: RunConfig,
    scored: Sequence[Utterance],
    trainer: MerTrainer | HeadTrainer,
) -> _ScoringPlan:
    """Build the scored datasets before the training, so that an impossible condition is reported first."""
    from llm_mer.data.dataset import MerDataset
    from llm_mer.model.modeling_mer import fusion_adapter_of

    assert trainer.model is not None
    assert trainer.description is not None
    available = [m for m in MODALITIES if m in fusion_adapter_of(trainer.model).config.modalities]
    dataset = MerDataset(
        scored,
        trainer.processor.tasks,
        languages=base.data.languages,
        context_window=chosen.data.context_window,
        bidirectional=chosen.data.bidirectional_context,
    )
    input_spec = input_spec_of(trainer.description, available, Path(config.output) / NOISY_FEATURES)
    conditions = conditions_of(config, system, available, trainer.description.backbone is not None)
    conditioned = {name: apply_condition(dataset, condition, seed, input_spec) for name, condition in conditions.items()}
    return _ScoringPlan(dataset, available, conditions, conditioned)


def _predict_conditions(
    trainer: MerTrainer | HeadTrainer, chosen: RunConfig, plan: _ScoringPlan
) -> tuple[dict[str, list[Prediction]], float]:
    """Predictions under every condition, and the milliseconds per answer without one."""
    from llm_mer.inference.predictor import Predictor
    from llm_mer.model.modeling_mer import fusion_adapter_of

    assert trainer.model is not None
    adapter = fusion_adapter_of(trainer.model)
    batch_size = chosen.training.per_device_eval_batch_size
    predictor = Predictor(trainer.model, trainer.processor, batch_size=batch_size, warns_of_distance=False)
    start = time.perf_counter()
    by_condition = {AS_IS: predictor.predict(plan.dataset)}
    milliseconds = 1000 * (time.perf_counter() - start) / len(plan.dataset)
    for name, dataset in plan.conditioned.items():
        precompute_corrupted_features(dataset, adapter.uses_context, ProcessGroup())
        with withhold_adapter(adapter, plan.conditions[name]):
            by_condition[name] = predictor.predict(dataset)
    return by_condition, milliseconds


def _save_compact_predictions(by_condition: dict[str, list[Prediction]], path: Path) -> None:
    """Save predictions without probabilities, and diagnostics only of those without a condition."""
    for name, predictions in by_condition.items():
        for prediction in predictions:
            prediction.probabilities = {}
            if name != AS_IS:
                prediction.diagnostics = {}
    save_predictions(path, by_condition)
