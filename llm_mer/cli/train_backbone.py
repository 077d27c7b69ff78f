"""``llm-mer train-backbone``: a tiny bilingual language model."""

from __future__ import annotations

from llm_mer.backbones.tiny_options import TinyBackboneConfig as Options

EXAMPLES = ("llm-mer train-backbone --architecture glm --output backbones/tiny-glm",)


def run(options: Options) -> object:
    """See :func:`llm_mer.backbones.tiny.train_tiny_backbone`."""
    from llm_mer.backbones.tiny import train_tiny_backbone

    return train_tiny_backbone(options)
