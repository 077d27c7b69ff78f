"""Scores of a checkpoint: conditions, metrics, resampling, journals; beside n, trivial baselines and unparseable rates."""
