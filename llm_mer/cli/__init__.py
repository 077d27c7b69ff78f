"""``llm-mer``: one file a command."""
