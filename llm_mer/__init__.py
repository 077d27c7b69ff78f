"""LLM-centric instruction tuning for multimodal emotion recognition and sentiment analysis."""

__version__ = "0.1.0"
