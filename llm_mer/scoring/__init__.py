"""Probabilities of every admissible answer: answer tree, scorer, score distributions, dialogue decoder, engines."""
