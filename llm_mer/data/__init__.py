"""Utterances: their schema, stores on disk, statistics, batches and public formats."""
