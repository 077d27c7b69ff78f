"""``llm-mer crosslingual``: trained on each language and tested on each."""

from __future__ import annotations

from llm_mer.experiments.options import CrosslingualConfig as Options

EXAMPLES = ("llm-mer crosslingual --config configs/quickstart.yaml --seeds 1 2 3",)


def run(options: Options) -> object:
    """See :func:`llm_mer.experiments.crosslingual.run`."""
    from llm_mer.experiments.crosslingual import run

    return run(options)
