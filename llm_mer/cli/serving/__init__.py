"""A checkpoint served to a browser."""
