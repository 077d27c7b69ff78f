"""From options and data to a checkpoint: arguments, set-up, trainer, resume, atomic checkpoints, seeds, reproduction."""
