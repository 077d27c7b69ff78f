"""Language-model backbones: loading, conversion, and the tiny ones trained on the spot."""
