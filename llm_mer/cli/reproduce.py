"""``llm-mer reproduce``: a training run again from its manifest."""

from __future__ import annotations

from llm_mer.training.reproduce_options import ReproduceConfig as Options

EXAMPLES = ("llm-mer reproduce runs/quickstart/egmf",)


def run(options: Options) -> object:
    """See :func:`llm_mer.training.reproduce.reproduce`."""
    from llm_mer.training.reproduce import reproduce

    return reproduce(options)
