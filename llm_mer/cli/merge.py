"""``llm-mer merge``: a checkpoint with LoRA merged into plain backbone weights."""

from __future__ import annotations

from pathlib import Path

from llm_mer.checkpoints.merge_options import MergeConfig as Options

EXAMPLES = (
    "llm-mer merge --checkpoint runs/quickstart/egmf --output runs/merged",
    "llm-mer merge --checkpoint runs/per_language --output runs/merged-en --language en --dtype bfloat16",
)


def run(options: Options) -> str:
    """See :func:`llm_mer.checkpoints.merging.merge_checkpoint`."""
    from llm_mer.adapters import use_adapter
    from llm_mer.checkpoints.merging import merge_checkpoint

    if options.adapter is not None:
        use_adapter(options.adapter)
    folder = merge_checkpoint(
        Path(options.checkpoint), Path(options.output), options.language, options.dtype, options.backbone
    )
    return f"{folder}: merged; it loads like any checkpoint, its backbone/ like any language model"
