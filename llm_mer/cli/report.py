"""``llm-mer report``: one self-contained HTML page."""

from __future__ import annotations

from llm_mer.reporting.options import ReportConfig as Options

EXAMPLES = ("llm-mer report --evaluations runs/quickstart/egmf --output report.html",)


def run(options: Options) -> object:
    """See :func:`llm_mer.reporting.report.run`."""
    from llm_mer.reporting.report import run

    return run(options)
