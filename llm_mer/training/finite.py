"""A training stops at the step whose losses or weights are NaN or infinite, and keeps the checkpoint before it.

A loss that is not finite ruins the weights in the same step: its gradient is not finite either. Weights can also go alone,
where an update overflows. Both are read together once a step, after the update and before anything is logged, evaluated or
saved, so that no later checkpoint holds them; micro-batches are not waited for.

With float16 and loss scaling, infinite *gradients* are part of the method: the scaler looks for the largest scale that does
not overflow, and skips the update where one does. Losses and weights stay finite there. Only a scaler that never finds such
a scale is stopped (:data:`MAX_SKIPPED_UPDATES`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import fusion_adapter_of
from llm_mer.training.atomic_checkpoints import describe_last_checkpoint

MAX_SKIPPED_UPDATES = 64
"""Updates that float16's loss scaling may skip one after another: halved so often, any scale has come to nothing."""


class NotFiniteError(UserError):
    """Training came to NaN or infinity; the message names the step, what is not finite, and the checkpoint to go on from."""

    exit_code = 1


def trained_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """This process's part of every trainable parameter, and the adapter's floating buffers (moving averages), by name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            held: Any = parameter.detach()
            held = getattr(parameter, "ds_tensor", held)  # the shard, under ZeRO-3
            yield name, held.to_local() if hasattr(held, "to_local") else held  # FSDP2's
    for name, buffer in fusion_adapter_of(model).named_buffers():
        if buffer.is_floating_point():
            yield f"fusion_adapter.{name}", buffer


def largest_value(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Largest absolute value as a scalar on the device, NaN where there is one; the device is not waited for."""
    held = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not held:
        return torch.zeros((), device=device)
    # A norm that squares nothing: in float16 a sum of squares may overflow where the values do not.
    return nn.utils.get_total_norm(held, norm_type=math.inf).float().to(device)


class StopWhenNotFinite(TrainerCallback):
    """Raises :class:`NotFiniteError` at the end of the step that is not finite, on every process in the same step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._loss: Tensor | None = None
        self._skipped = 0

    def note(self, loss: Tensor) -> None:
        """Add a micro-batch's loss to what the step has; it stays where it was computed."""
        self._loss = loss.detach().float() if self._loss is None else self._loss + loss.detach().float()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._loss = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, device = self.trainer, args.device
        loss = torch.zeros((), device=device) if self._loss is None else self._loss.to(device)
        weights = largest_value([value for _, value in trained_tensors(trainer.model)], device)
        found = torch.stack([loss.isfinite(), weights.isfinite()]).logical_not().float()
        if args.world_size > 1:
            found = trainer.accelerator.reduce(found, reduction="sum")
        wrong_loss, wrong_weights = found.tolist()  # the one place of a step that waits
        if wrong_loss:
            self._stop(state.global_step, f"the loss is not finite ({self._format_losses(state.global_step)})")
        if wrong_weights:
            names = [name for name, value in trained_tensors(trainer.model) if not bool(value.isfinite().all())]
            reason = (
                f"the update made {len(names)} weights NaN or infinite, e.g. {names[0]}" if names else "weights overflow"
            )
            self._stop(state.global_step, reason)
        self._skipped = self._skipped + 1 if trainer.accelerator.optimizer_step_was_skipped else 0
        if self._skipped > MAX_SKIPPED_UPDATES:
            self._stop(
                state.global_step, f"gradients are NaN or infinite at every scale, {self._skipped} updates were skipped"
            )

    def _format_losses(self, step: int) -> str:
        """Every loss of the step on this process, by name."""
        # A step's losses are noted before it is counted.
        losses = self.trainer.losses_of_step(step - 1)
        return ", ".join(f"{name} {value:.4g}" for name, value in losses.items()) or "on another process"

    def _stop(self, step: int, reason: str) -> None:
        output = self.trainer.checkpoint_folder
        raise NotFiniteError(
            f"training stopped at step {step}: {reason}; a smaller learning_rate, or bf16 in place of fp16, may help; "
            f"{describe_last_checkpoint(output)}"
        )
