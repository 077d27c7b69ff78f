"""One command from a table of a user's own clips to a model: what the columns mean, splits, options, and the steps."""
