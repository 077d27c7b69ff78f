"""One training of a comparison and its predictions on the scored split."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from llm_mer.adapters.base import MODALITIES
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import (
    AS_IS,
    DIALOGUE,
    NOISY_FEATURES,
    Condition,
    parse_conditions,
    prepare_damage,
    reader_of,
    under,
)
from llm_mer.evaluation.dialogue import decode_dialogues
from llm_mer.evaluation.rows import PREDICTIONS, save_predictions
from llm_mer.experiments.comparison.results import RUN, RunResult, RunSettings
from llm_mer.experiments.comparison.systems import FULL, System
from llm_mer.experiments.options import CompareConfig

logger = logging.getLogger(__name__)


def conditions_of(config: CompareConfig, system: System, available: list[str]) -> dict[str, Condition]:
    """The conditions a system can be scored under; an ablation without the modality a condition names does without it."""
    found: dict[str, Condition] = {}
    for text in config.conditions:
        try:
            found |= parse_conditions([text], available)
        except UserError as error:
            if system.ablation == FULL:
                raise
            logger.warning("%s: %s", system.name, error)
    return found


def training_arguments(config: CompareConfig, system: System, seed: int, folder: Path) -> list[str]:
    """The command line of one training. Data order follows the seed alone, so it is the same for every system."""
    arguments = ["--config", config.config, "--adapter", system.adapter, "--output_dir", str(folder), "--seed", str(seed)]
    arguments += ["--data_seed", str(seed)]
    if system.backbone:
        arguments += ["--backbone", system.backbone]
    for text in config.overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"overrides: {text!r}; write option=value")
        arguments += [f"--{name}", value]
    for name, value in system.options.items():
        arguments += [f"--{name}", value]
    return arguments


def scored_languages(config: CompareConfig, system: System) -> list[str] | None:
    """The languages of the YAML file and the overrides: a system trained on one of them is scored on all."""
    from llm_mer.training.parsing import parse_arguments

    options = {name: value for name, value in system.options.items() if name != "languages"}
    everywhere = dataclasses.replace(system, options=options)
    data, _, _, _ = parse_arguments(training_arguments(config, everywhere, config.seeds[0], Path("unused")))
    return data.languages


def train_and_predict(config: CompareConfig, system: System, seed: int, folder: Path, settings: RunSettings) -> RunResult:
    """One training and its predictions on the scored split under every condition; nothing is written until all is done."""
    from llm_mer.data.dataset import MerDataset
    from llm_mer.data.reading import find_split, read_utterances
    from llm_mer.inference.predictor import Predictor
    from llm_mer.model.modeling_mer import describe_parameters, fusion_adapter_of
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.run import prepare_run, save_final

    languages = scored_languages(config, system)  # first: parsing options resets what a trainer stands on
    data, model, training, options = parse_arguments(settings.arguments)
    splits, _, _ = read_utterances(data.data)
    scored = find_split(splits, config.split, data.data)  # a wrong split is told before the training
    scratch = tempfile.TemporaryDirectory(prefix="llm-mer-compare-")
    if not config.keep_models:
        training.output_dir, model.save_backbone = scratch.name, "never"
    run = prepare_run(data, model, training, options, ["finetune.py", *settings.arguments])
    trainer = run.trainer
    assert trainer.model is not None
    assert trainer.description is not None
    tasks, shifts = trainer.processor.tasks, trainer.description.shift_probability
    if config.dialogue_decoder and any(t.kind == "classification" and t.name not in shifts for t in tasks):
        raise UserError(f"the training data of {data.data} had no dialogues: no p0 for the dialogue decoder")
    available = [m for m in MODALITIES if m in fusion_adapter_of(trainer.model).config.modalities]
    dataset = MerDataset(
        scored,
        tasks,
        languages=languages,
        context_window=data.context_window,
        bidirectional=data.bidirectional_context,
    )
    reader = reader_of(trainer.description, available, Path(config.output) / NOISY_FEATURES)
    conditions = conditions_of(config, system, available)
    changed = {name: under(dataset, condition, seed, reader) for name, condition in conditions.items()}
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    adapter = fusion_adapter_of(trainer.model)
    predictor = Predictor(
        trainer.model, trainer.processor, batch_size=training.per_device_eval_batch_size, use_context=adapter.uses_context
    )
    began = time.perf_counter()
    by_condition = {AS_IS: predictor.predict(dataset)}
    per_answer = 1000 * (time.perf_counter() - began) / len(dataset)
    for name, other in changed.items():
        prepare_damage(other, adapter.uses_context, ProcessGroup())
        by_condition[name] = predictor.predict(other)
    if config.dialogue_decoder:
        for task in tasks:
            if task.name in shifts:
                own = [p for p in by_condition[AS_IS] if p.task == task.name]
                by_condition.setdefault(DIALOGUE, []).extend(decode_dialogues(own, task, shifts[task.name]))
    folder.mkdir(parents=True, exist_ok=True)
    if config.keep_models:
        save_final(trainer, folder)
    for name, predictions in by_condition.items():
        for prediction in predictions:
            prediction.probabilities = {}
            if name != AS_IS:
                prediction.diagnostics = {}
    save_predictions(folder / PREDICTIONS, by_condition)
    result = RunResult(
        **asdict(settings),
        system=system.name,
        seed=seed,
        modalities=available,
        parameters=describe_parameters(trainer.model),
        train_questions=int(trainer.description.data["train_questions"]),
        train_seconds=round(seconds, 2),
        steps=trainer.state.global_step,
        milliseconds_per_answer=round(per_answer, 3),
        shift_probability=shifts,
        tasks={task.name: task.to_dict() for task in tasks},
        diagnostics=[asdict(info) for info in adapter.diagnostic_info()],
    )
    run.manifest.finish(folder, {}, trainer.state.global_step)
    (folder / RUN).write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    del run, trainer, predictor
    scratch.cleanup()
    gc.collect()
    return result
