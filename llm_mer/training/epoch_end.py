"""What an adapter does once an epoch (moving averages, followed vectors), as a callback of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llm_mer.checkpoints.description import TRAJECTORIES
from llm_mer.distributed.deepspeed import gathered_master_parameters
from llm_mer.distributed.sharded_parameters import keep_parameters_gathered, reduce_gradients_in_parameter_order
from llm_mer.errors import UserError
from llm_mer.model.modeling_mer import fusion_adapter_of
from llm_mer.storage.atomic_files import write_text_atomically
from llm_mer.storage.json_lines import parse_json_object
from llm_mer.storage.json_text import dump_json
from llm_mer.storage.quoting import quote
from llm_mer.storage.system_errors import naming_path
from llm_mer.training.state_file import find_best_checkpoint


def epoch_of(line: bytes, where: str) -> float:
    """The epoch of a line of trajectories. Raises :class:`UserError` for a line that no training wrote."""
    epoch = parse_json_object(line, where).get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int | float):
        raise UserError(f"{where}: field 'epoch' is {quote(epoch)}; a training writes a number; delete the file to go on")
    return float(epoch)


def truncate_trajectories(path: Path, epoch: float) -> None:
    """Keep the lines of trajectories up to an epoch. Raises :class:`UserError` for a line that no training wrote."""
    # A line without its end was being written when the run was killed.
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for number, line in enumerate(lines, 1) if epoch_of(line, f"{path}:{number}") <= epoch]
    write_text_atomically(path, "".join(f"{line.decode()}\n" for line in kept))


class _EpochEnd(TrainerCallback):
    """Lets the adapter do its once-an-epoch work (moving averages), logs what it reports and keeps what it follows."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch % 1:
            return
        # Not the trainer's own end of an epoch: a checkpoint of the last step is written before that, and a run resumed
        # from it goes on with the next epoch.
        adapter = fusion_adapter_of(self.trainer.model)
        with gathered_master_parameters(adapter):
            values = adapter.on_epoch_end()
        for name, value in values.items():
            self.trainer.record(name, value)
        self.follow(args, state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keep_parameters_gathered(getattr(self.trainer, "model_wrapped", None), fusion_adapter_of(self.trainer.model))
        reduce_gradients_in_parameter_order(self.trainer.accelerator)
        resumed = None if args.resume_from_checkpoint is None else Path(args.resume_from_checkpoint)
        find_best_checkpoint(state, Path(args.output_dir), resumed, needed=args.load_best_model_at_end)
        path = Path(args.output_dir) / TRAJECTORIES
        if state.global_step == 0:
            if state.is_world_process_zero:
                path.unlink(missing_ok=True)
            self.follow(args, state)
        elif state.is_world_process_zero and path.is_file():  # a resumed run walks the epochs after its checkpoint again
            truncate_trajectories(path, state.epoch or 0)

    def follow(self, args: Any, state: Any) -> None:
        """Append where the followed vectors stand now. Every rank comes here: they may be sharded."""
        adapter = fusion_adapter_of(self.trainer.model)
        with gathered_master_parameters(adapter):
            vectors = adapter.followed_vectors()
        if not vectors or not state.is_world_process_zero:
            return
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(args.output_dir) / TRAJECTORIES
        with naming_path(path), path.open("a") as stream:
            for name, values in vectors.items():
                points = [[round(v, 5) for v in row] for row in values.float().cpu().tolist()]
                stream.write(dump_json({"epoch": state.epoch or 0, "name": name, "points": points}) + "\n")
