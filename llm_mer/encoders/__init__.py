"""Pretrained speech, vision and text encoders."""
