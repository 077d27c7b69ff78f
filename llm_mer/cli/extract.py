"""``llm-mer extract``: features of every clip of a manifest, as a store."""

from __future__ import annotations

from llm_mer.features.extract import ExtractConfig as Options

EXAMPLES = ("llm-mer extract --manifest data/corpus/manifest.jsonl --output data/features",)


def run(options: Options) -> object:
    """See :func:`llm_mer.features.extract.extract_manifest`."""
    from llm_mer.features.extract import extract_manifest

    return extract_manifest(options)
