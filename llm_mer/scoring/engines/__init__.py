"""What runs the language model when questions are answered: one file each, one line each in ``base.ENGINES``."""
