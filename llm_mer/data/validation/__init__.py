"""Faults of a data set, found before a training does."""
