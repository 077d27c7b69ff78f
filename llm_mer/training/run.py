"""From options to a checkpoint: train, keep the best, save, evaluate."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from llm_mer.checkpoints.integrity import CHECKSUMS_FILE, write_checksums
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.checkpoints.run_manifest import begin as begin_manifest
from llm_mer.checkpoints.weights import drop_training_only_parameters
from llm_mer.model.modeling_mer import describe_parameters, fusion_adapter_of
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.storage.watched_folder import WatchedFolder, watch_folder
from llm_mer.training.atomic_checkpoints import STAGING_FOLDER, disk_full_error
from llm_mer.training.evaluation import print_evaluation
from llm_mer.training.interruption import Interrupted, SignalCallback
from llm_mer.training.output_folder import LOG_HISTORY, TrainingOutput, claim_output, is_finished
from llm_mer.training.run_config import RunConfig
from llm_mer.training.setup import attention_of, build_trainer
from llm_mer.training.trainer import HeadTrainer, MerTrainer

logger = logging.getLogger(__name__)


def save_final(trainer: MerTrainer | HeadTrainer, output: Path) -> None:
    """The checkpoint to answer with, in ``output``: without what only training needs. Called on every rank."""
    staging = output / STAGING_FOLDER / "model"
    try:
        trainer.save_model(str(staging))
        if trainer.is_world_process_zero():
            assert trainer.model is not None
            drop_training_only_parameters(staging, fusion_adapter_of(trainer.model).training_only_parameters())
            write_checksums(staging)
    except Exception:
        shutil.rmtree(output / STAGING_FOLDER, ignore_errors=True)  # a full disk has no room for it
        raise
    trainer.accelerator.wait_for_everyone()
    if trainer.args.local_process_index == 0 and staging.is_dir():
        # The checksums last: a kill in between is then noticed when the checkpoint is loaded.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == CHECKSUMS_FILE):
            path.replace(output / path.name)
        shutil.rmtree(output / STAGING_FOLDER, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


@dataclass
class Run:
    """A training that has been checked and built, and not begun. ``output``: where it is written."""

    trainer: MerTrainer | HeadTrainer
    manifest: RunManifest
    output: Path


class _FolderCallback(TrainerCallback):
    """Ends training where its output folder is gone, before a checkpoint makes it anew without what lay in it."""

    def __init__(self, watched: WatchedFolder) -> None:
        self.watched = watched

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watched.check()


def train(config: RunConfig, command: Sequence[str]) -> RunManifest:
    """Check, train, keep the best, save, evaluate: the whole of one run.

    Raises:
        UserError: the output folder is another process's or holds something finished, or as :func:`prepare_run` and
            :func:`train_run`.
    """
    with claim_output(config) as place:
        return train_run(prepare_run(config, command), place)


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


def train_run(run: Run, place: TrainingOutput) -> RunManifest:
    """Train, keep the best, save, evaluate, and let the result take its place.

    The manifest lies beside the checkpoint from the start of a new run, whole at the end; that of a finished run which
    goes on is replaced at its end.

    Raises:
        UserError: a full disk, naming what is left to go on from, or an output folder that was removed. Interrupted:
            SIGTERM or Ctrl-C during training.
    """
    trainer = run.trainer
    interruption = SignalCallback(run.output, trainer.args.process_index, trainer.args.world_size)
    try:
        with watch_folder(run.output) as watched:
            trainer.add_callback(_FolderCallback(watched))
            _train_run(run, interruption)
        place.publish()
    except Exception as error:
        if (disk_error := disk_full_error(error, run.output)) is not None:
            raise disk_error from error
        raise
    if interruption.received:  # after the last checkpoint, too late to stop this run, but not those that would follow
        raise Interrupted(f"stopped by {interruption.received}; the run in {place.target} is finished")
    return run.manifest


def _train_run(run: Run, interruption: SignalCallback) -> None:
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
        if not is_finished(output):
            run.manifest.save(output)
    trainer.accelerator.wait_for_everyone()
    trainer.add_callback(interruption)
    with interruption.handle_signals():
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    save_final(trainer, output)
    trainer.save_state()
    if first:
        write_json_atomically(output / LOG_HISTORY, trainer.state.log_history)
    metrics = trainer.evaluate() if trainer.evaluation is not None else {}
    if first:
        if metrics:
            print_evaluation(metrics, trainer.processor.tasks)
        run.manifest.finish(output, metrics, trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()
