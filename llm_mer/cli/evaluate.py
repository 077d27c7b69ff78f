"""``llm-mer evaluate``: scores of a checkpoint, beside trivial baselines, with intervals."""

from __future__ import annotations

from llm_mer.evaluation.options import EvaluateConfig as Options

EXAMPLES = (
    "llm-mer evaluate --checkpoint runs/quickstart/egmf --data runs/quickstart/features",
    "llm-mer evaluate --checkpoint runs/x --data data/meld --conditions shuffle:audio,vision without:text",
    "llm-mer evaluate --backbone smollm2 --data data/meld --tasks meld --prompts question --output runs/zero-shot",
)


def run(options: Options) -> object:
    """See :func:`llm_mer.evaluation.over_seeds.run`."""
    from llm_mer.evaluation.over_seeds import run

    return run(options)
