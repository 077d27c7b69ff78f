"""``llm-mer audit``: free-text answers of any other system, scored as this program scores its own."""

from __future__ import annotations

from llm_mer.evaluation.options import AuditConfig as Options

EXAMPLES = ("llm-mer audit answers.jsonl --data data/meld --task meld --output runs/audit",)


def run(options: Options) -> str:
    """See :func:`llm_mer.evaluation.audit.run`."""
    from llm_mer.evaluation.audit import run

    return run(options)
