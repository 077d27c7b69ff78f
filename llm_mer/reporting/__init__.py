"""One page from evaluations: sections, plots, facts."""
