"""Answers that are always valid: label and number scoring, and dialogue-level decoding."""
