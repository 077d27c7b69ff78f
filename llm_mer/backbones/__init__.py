"""Language models: loading, quantisation, LoRA by language, attention masks, conversion, tiny ones trained on the spot."""
