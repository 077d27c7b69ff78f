"""The trainer on TRL's: the sum of named losses, the optimiser, evaluation by the tasks' metrics, atomic checkpoints."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.data.dataset import MerDataset
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.distributed.sharded_parameters import is_sharded
from llm_mer.evaluation.adapter_warnings import diagnose
from llm_mer.evaluation.journal import predict_all
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.predictor import Predictor
from llm_mer.model.modeling_mer import conditional_generation_of, fusion_adapter_of
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.model.read_out import read_out_losses
from llm_mer.training.answer_objectives import answer_scores, question_losses, targets_from, training_losses
from llm_mer.training.atomic_checkpoints import CheckpointWriter
from llm_mer.training.epoch_end import _EpochEnd
from llm_mer.training.evaluation import summarise
from llm_mer.training.finite import StopWhenNotFinite
from llm_mer.training.injection_schedule import InjectionSchedule
from llm_mer.training.loss_weighting import (
    STEP_TARGETS,
    LossNotes,
    StepTargets,
    auxiliary_share,
    count_read_out_questions,
    known_targets,
    language_model_share,
)
from llm_mer.training.objectives import CRPS
from llm_mer.training.sampling import GroupedByLength
from llm_mer.training.state_file import save_state_without_folders

logger = logging.getLogger(__name__)


class MerTraining(Trainer):
    """What both trainers share: the sum of named losses, their logs, and evaluation by the tasks' own metrics.

    The language-model loss is a sum over answer tokens, or over questions (``objective: answers``), divided by their count
    ``N`` in the whole global batch. An auxiliary loss is a mean over the ``C_i`` samples of a micro-batch with a target of
    its kind, and weighted by their share in the global batch. With ``n`` processes, which average their gradients, the
    gradient of all micro-batches is then that of one process with the whole batch::

        L = w_lm · n · Σ_local nll / N_global  +  Σ_i w_i · n · aux_i · C_i,local / C_i,global

    A loss without such a count (GIA-MIC's contrast, LPGNet's distillation) weighs the same in each of ``g`` micro-batches:
    ``aux_i / g``. The terms are computed in :mod:`~llm_mer.training.loss_weighting`.

    Attributes:
        number_objective: what is minimised for a number where batches bring all admissible answers.

    In ``MerTrainer`` the calls to ``super()`` reach TRL's trainer, which stands between this class and transformers'.
    """

    number_objective = CRPS

    def set_up(
        self,
        processor: MerProcessor,
        loss_weights: dict[str, float],
        adapter_learning_rate: float | None,
        schedule: InjectionSchedule,
        description: CheckpointDescription | None,
        evaluation: MerDataset | None,
    ) -> None:
        """Called once after the trainer's own construction."""
        self.processor = processor
        self.loss_weights = loss_weights
        self.adapter_learning_rate = adapter_learning_rate
        self.schedule = schedule
        self.description = description
        self.evaluation = evaluation
        self._records: dict[str, list[float]] = {}
        self._shares = LossNotes()
        self._evaluation_losses: dict[str, list[Tensor]] = {}
        self.current_gradient_accumulation_steps = 1  # set anew by each step
        self._staging_folder: Path | None = None
        self.finite = StopWhenNotFinite(self)
        self.add_callback(self.finite)  # before whatever would use the step's result
        self.add_callback(_EpochEnd(self))

    def _send_telemetry(self) -> None:
        """Nothing is reported: TRL (1.16) would tell huggingface.co of each training from the trainer's constructor."""

    # --- losses ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the language model's loss, the adapter's auxiliary losses and the read-out's.

        The language model's is the cross-entropy of the answer tokens (``MerForConditionalGeneration.forward``), or with
        ``objective: answers`` a loss over the answer distribution (:mod:`llm_mer.training.answer_objectives`).
        """
        trainer: Any = self
        inputs = dict(inputs)
        targets = inputs.pop(STEP_TARGETS, None)
        if "labels" in inputs:
            inputs["use_cache"] = False
        training = trainer.model.training
        step, steps = trainer.state.global_step, trainer.state.max_steps
        fusion_adapter_of(trainer.model).withhold_tokens = training and self.schedule.withholds(step, steps)
        tasks, wanted, votes = (inputs.pop(f"read_out_{name}", None) for name in ("tasks", "targets", "votes"))
        answers = None
        if "answer_nodes" in inputs:
            answers = targets_from(inputs)
            del inputs["labels"]  # counted by the trainer, one a question
        outputs = model(**inputs)
        if answers is not None:
            loss = training_losses if training else question_losses
            losses = loss(answer_scores(outputs.answer_log_probs, answers), answers, self.number_objective)
            outputs.loss_sum, outputs.loss = losses.sum(), losses.mean()
        mode = "" if trainer.model.training else "eval_"
        total: Tensor | None = None
        if outputs.loss_sum is not None:
            weight = self.loss_weights.get("lm", 1.0)
            if num_items_in_batch is None:
                share = outputs.loss
            else:
                processes = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
                share = language_model_share(outputs.loss_sum, num_items_in_batch, processes)
            total = weight * share
            self.note(f"{mode}loss_lm", share, num_items_in_batch is None)
        for name, value in (outputs.fusion.aux_losses if outputs.fusion is not None else {}).items():
            weight = self.loss_weights.get(name, 0.0) * (self.schedule.auxiliary_weight(step, steps) if training else 1.0)
            share = value * self.share_of(name, targets, num_items_in_batch is None)
            self.note(f"{mode}loss_{name}", share, num_items_in_batch is None)
            if weight == 0.0:
                continue
            total = weight * share if total is None else total + weight * share
        if outputs.read_out is not None and tasks is not None:
            read_out_targets = (tasks, wanted, votes)
            share = self._read_out_share(outputs.read_out, read_out_targets, targets, num_items_in_batch is None)
            self.note(f"{mode}loss_read_out", share, num_items_in_batch is None)
            total = self.loss_weights.get("read_out", 1.0) * share + (0.0 if total is None else total)
        if total is None:
            raise ValueError("the model returned no loss: no labels, and no auxiliary loss with a weight above 0")
        if trainer.model.training and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            # Every parameter gets a gradient on every process, though its part may not have run on this one: both put
            # the gradients there are one after another, and add the processes' rows up place by place.
            total = total + 0.0 * sum(p.sum() for p in fusion_adapter_of(trainer.model).parameters() if p.requires_grad)
        if trainer.model.training:
            self.finite.note(total)
        return (total, outputs) if return_outputs else total

    def _read_out_share(
        self, outputs: Tensor, read_out_targets: tuple[Any, ...], targets: StepTargets | None, averaged: bool
    ) -> Tensor:
        """A micro-batch's part in the mean loss of a question: ``n · Σ_local / Q_global``.

        ``read_out_targets``: tasks, targets and votes of :func:`~llm_mer.model.read_out.read_out_losses`.
        """
        trainer: Any = self
        sizes = conditional_generation_of(trainer.model).config.read_out or {}
        losses = read_out_losses(outputs, sizes, *read_out_targets)
        if not trainer.model.training or targets is None:
            return losses.mean()
        scale = trainer.current_gradient_accumulation_steps if averaged else 1
        return losses.sum() * (scale * trainer.accelerator.num_processes / max(targets.questions[1], 1))

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Evaluation loss of a batch; predictions are made by :class:`~llm_mer.inference.predictor.Predictor` instead."""
        trainer: Any = self
        inputs = trainer._prepare_inputs(inputs)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, inputs).detach(), None, None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step; their known targets are counted over all processes."""
        trainer: Any = self
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:  # every process has as many
            read = torch.tensor([[count_read_out_questions(batch)] for batch in batches], device=device)
            local = torch.stack([known_targets(batch, device) for batch in batches])
            local = torch.cat([local, read], dim=1)  # (g, 3)
            total = trainer.accelerator.reduce(local.sum(dim=0), reduction="sum")
            # Read once a step, for all its micro-batches.
            *rows, (classes, scores, questions) = torch.cat([local, total.unsqueeze(0)]).tolist()
            for batch, row in zip(batches, rows, strict=True):
                batch[STEP_TARGETS] = StepTargets((row[0], row[1]), (classes, scores), (row[2], questions))
        return batches, count

    def share_of(self, name: str, targets: StepTargets | None, averaged: bool) -> float:
        """What an auxiliary loss of a micro-batch is multiplied by; ``averaged``: the trainer divides by the steps too."""
        trainer: Any = self
        if not trainer.model.training or targets is None:
            return 1.0
        adapter, processes = fusion_adapter_of(trainer.model), trainer.accelerator.num_processes
        return auxiliary_share(adapter, name, targets, trainer.current_gradient_accumulation_steps, processes, averaged)

    def note(self, name: str, share: Tensor, averaged: bool) -> None:
        """Note a micro-batch's share in a loss; the next log line has its sum over a step, the mean over steps."""
        trainer: Any = self
        if not trainer.model.training:
            self._evaluation_losses.setdefault(name, []).append(share.detach().clone())
            return
        self._shares.add(
            name, trainer.state.global_step, share, trainer.current_gradient_accumulation_steps if averaged else 1
        )

    def losses_of_step(self, step: int) -> dict[str, float]:
        """What has been noted of a step on this process, by the losses' names."""
        return self._shares.of_step(step)

    @property
    def checkpoint_folder(self) -> Path:
        """Where ``checkpoint-N`` folders are."""
        trainer: Any = self
        return Path(trainer.args.output_dir)

    def record(self, name: str, value: float) -> None:
        """Note a value; the next log line carries the mean of all notes, over every process."""
        self._records.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the noted means to a log line."""
        trainer: Any = self
        evaluating = any(key.startswith("eval_") for key in logs)
        if not evaluating:
            for name, sums in self._shares.take().items():
                self._records.setdefault(name, []).extend(sums)
        else:
            for name, values in self._evaluation_losses.items():
                self._records.setdefault(name, []).extend(torch.stack(values).tolist())
            self._evaluation_losses.clear()
        names = sorted(n for n in self._records if n.startswith("eval_") == evaluating)
        if names:
            means = torch.tensor([float(np.mean(self._records.pop(n))) for n in names], device=trainer.args.device)
            means = trainer.accelerator.reduce(means, reduction="mean")
            logs = {**logs, **{n: round(float(v), 6) for n, v in zip(names, means, strict=True)}}
        # A number that is none is left out: the norm of gradients that float16's scaler skipped, a correlation of constants.
        super().log({name: value for name, value in logs.items() if _is_known(value)}, start_time)

    # --- optimiser ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The trainer's own optimiser, with the adapter in groups of its own learning rate when one is set."""
        trainer: Any = self
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if self.adapter_learning_rate is None or getattr(self, "_groups_split", False):
            return optimizer
        adapter = {p for n, p in trainer.model.named_parameters() if "fusion_adapter" in n}
        groups = []
        for group in optimizer.param_groups:
            own = [p for p in group["params"] if p in adapter]
            rest = [p for p in group["params"] if p not in adapter]
            groups += [{**group, "params": rest}] if rest else []
            groups += [{**group, "params": own, "lr": self.adapter_learning_rate}] if own else []
        optimizer.param_groups[:] = groups
        self._groups_split = True
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The trainer's own, but groups of alike length are drawn anew each epoch from the seed and nothing else.

        Transformers draws them from the global state of torch, which differs between processes and in a resumed run.
        """
        trainer: Any = self
        if trainer.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
        rows = (trainer.train_dataset if train_dataset is None else train_dataset)[trainer.args.length_column_name]
        return GroupedByLength(trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps, list(rows), seed)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """The trainer's loop for the loss, then the tasks' metrics on the same questions."""
        trainer: Any = self
        output: Any = super().evaluation_loop(dataloader, description, *args, **kwargs)
        if self.evaluation is not None:
            prefix = kwargs.get("metric_key_prefix", "eval")
            predictions = self.predict_distributed(self.evaluation)
            output.metrics.update(summarise(predictions, self.processor.tasks, prefix))
            for warning in diagnose(fusion_adapter_of(trainer.model), predictions):
                logger.warning(warning)
        return output

    def predict_distributed(self, dataset: MerDataset) -> list[Prediction]:
        """Predictions for a dataset on every process, each doing its share of whole batches where it can."""
        trainer: Any = self
        # Where parameters are sharded, every forward needs every process: all answer all questions, in the same order.
        alone = is_sharded(trainer.model)
        rank, world = (0, 1) if alone else (trainer.accelerator.process_index, trainer.accelerator.num_processes)
        batch_size = trainer.args.per_device_eval_batch_size
        predictor = Predictor(trainer.model, self.processor, batch_size=batch_size, warns_of_distance=False)
        quiet = trainer.args.disable_tqdm or not trainer.is_world_process_zero()
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            return predict_all(predictor, dataset, "evaluate", ProcessGroup(rank, world), progress=not quiet)

    # --- saving ---------------------------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: TRL's card describes a fine-tuned language model and leaves the adapter out; see ``llm-mer card``."""

    def _get_output_dir(self, trial: Any) -> str:
        """The folder of ``checkpoint-N``: while one is being written, that of unfinished ones."""
        if getattr(self, "_staging_folder", None) is not None:
            return str(self._staging_folder)
        return str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """``checkpoint-N`` appears under its name when it is complete; only then are older ones deleted."""
        trainer: Any = self
        args, state = trainer.args, trainer.state
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        processes = ProcessGroup(args.process_index, args.world_size)
        writer = CheckpointWriter(Path(args.output_dir), name, processes, args.local_process_index == 0)
        writer.prepare()
        self._staging_folder = writer.staging
        try:
            super()._save_checkpoint(model, trial)
            # The folder may have moved since the best was saved: it is named by where it lies now.
            best = writer.output / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            if state.best_global_step and (best.name == name or best.is_dir()):
                state.best_model_checkpoint = str(best)
            if args.should_save:
                save_state_without_folders(state, writer.staging / name)
        except Exception:
            writer.abort()
            raise
        finally:
            self._staging_folder = None
        writer.commit(args.save_total_limit, state.best_model_checkpoint)

    def save_state(self) -> None:
        """``trainer_state.json`` beside the final model."""
        trainer: Any = self
        if trainer.args.should_save:
            save_state_without_folders(trainer.state, Path(trainer.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights, and beside them everything needed to use them elsewhere."""
        trainer: Any = self
        folder = Path(output_dir or trainer.args.output_dir)
        card = folder / "README.md"
        before = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        # A pickle of every option, folders of this machine among them, that nothing reads: the manifest holds the options.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        # Every rank comes here; only the first knows where the backbone's copy lies.
        if not trainer.args.should_save:
            return
        if before is not None:
            card.write_bytes(before)
        else:
            card.unlink(missing_ok=True)  # PEFT's form, with nothing filled in
        if self.description is not None:
            self.description.save(folder)


def _is_known(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class MerTrainer(MerTraining, SFTTrainer):
    """TRL's supervised fine-tuning trainer with pseudo tokens and auxiliary losses.

    ``compute_loss`` is ours: TRL's default calls the backbone and the output embeddings directly through a fused head,
    which leaves this project's auxiliary losses out.
    """


class HeadTrainer(MerTraining):
    """Transformers' trainer for an adapter alone (``--backbone none``): there is no language model to fine-tune."""
