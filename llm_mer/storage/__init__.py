"""Files as such, whatever is in them: read within bounds, written whole or not at all."""
