"""From options to a checkpoint: train, keep the best, save, evaluate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from llm_mer.checkpoints.integrity import write_checksums
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.checkpoints.run_manifest import begin as begin_manifest
from llm_mer.checkpoints.weights import drop_training_only_parameters
from llm_mer.model.modeling_mer import describe_parameters, fusion_adapter_of
from llm_mer.storage.json_text import dump_json
from llm_mer.training.atomic_checkpoints import disk_full_error, remove_checkpoints
from llm_mer.training.evaluation import print_evaluation
from llm_mer.training.interruption import Interrupted, SignalCallback
from llm_mer.training.run_config import RunConfig
from llm_mer.training.setup import attention_of, build_trainer
from llm_mer.training.trainer import HeadTrainer, MerTrainer

logger = logging.getLogger(__name__)


def save_final(trainer: MerTrainer | HeadTrainer, output: Path) -> None:
    """The checkpoint to answer with, in ``output``: without what only training needs. Called on every rank."""
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        assert trainer.model is not None
        drop_training_only_parameters(output, fusion_adapter_of(trainer.model).training_only_parameters())
        write_checksums(output)


@dataclass
class Run:
    """A training that has been checked and built, and not begun."""

    trainer: MerTrainer | HeadTrainer
    manifest: RunManifest
    output: Path


def prepare_run(config: RunConfig, command: Sequence[str]) -> Run:
    """Everything before the first step. ``command`` is what the manifest shows as the command line.

    Raises:
        UserError: as :func:`build_trainer`.
    """
    trainer = build_trainer(config)
    assert trainer.description is not None
    assert trainer.description.run is not None
    manifest = begin_manifest(
        command,
        trainer.description.run,
        trainer.description,
        config.training.device.type,
        str(trainer.accelerator.mixed_precision),
        trainer.accelerator.num_processes,
    )
    return Run(trainer, manifest, Path(str(config.training.output_dir)))


def train_run(run: Run) -> RunManifest:
    """Train, keep the best, save, evaluate; the manifest lies beside the checkpoint from the start, whole at the end.

    Raises:
        UserError: a full disk, naming what is left to go on from. Interrupted: SIGTERM or Ctrl-C during training.
    """
    try:
        return _train_run(run)
    except Exception as error:
        if (told := disk_full_error(error, run.output)) is not None:
            raise told from error
        raise


def _train_run(run: Run) -> RunManifest:
    trainer, output = run.trainer, run.output
    first = trainer.is_world_process_zero()
    assert trainer.model is not None
    parameters = describe_parameters(trainer.model)
    if first:
        assert isinstance(trainer.train_dataset, Dataset)
        logger.info(
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
    interruption = SignalCallback(output, trainer.args.process_index, trainer.args.world_size)
    trainer.add_callback(interruption)
    with interruption.handle_signals():
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    save_final(trainer, output)
    trainer.save_state()
    if first:
        (output / "log_history.json").write_text(dump_json(trainer.state.log_history, indent=1), encoding="utf-8")
    metrics = trainer.evaluate() if trainer.evaluation is not None else {}
    if first:
        if metrics:
            print_evaluation(metrics, trainer.processor.tasks)
        run.manifest.finish(output, metrics, trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()
    if interruption.received:  # after the last checkpoint, too late to stop this run, but not those that would follow
        raise Interrupted(f"stopped by {interruption.received}; the run in {output} is finished")
    return run.manifest
