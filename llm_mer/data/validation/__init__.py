"""Validating a data set before training."""
