"""``llm-mer demo``: a checkpoint in the browser."""

from __future__ import annotations

from llm_mer.cli.serving.demo import DemoConfig as Options

EXAMPLES = ("llm-mer demo --checkpoint runs/quickstart/egmf --port 7860",)


def run(options: Options) -> None:
    """See :func:`llm_mer.cli.serving.demo.run`."""
    from llm_mer.cli.serving.demo import run

    run(options)
