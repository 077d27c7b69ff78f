"""Utterances: their schema, stores, data sets of questions, corruption, statistics, validation and public sources."""
