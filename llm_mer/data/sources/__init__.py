"""One module per public format; each yields :class:`llm_mer.data.schema.Utterance`."""
