"""Answers about utterances: predictions, predictor, pipeline, inputs and the file of answers."""
