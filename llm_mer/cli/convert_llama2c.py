"""``llm-mer convert-llama2c``: a llama2.c model and tokenizer as a Llama folder of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = ("llm-mer convert-llama2c --source stories260K.bin --tokenizer tok512.bin --target backbones/stories260K",)


@dataclass
class Options:
    """Options of ``llm-mer convert-llama2c``."""

    source: str = field(default="", metadata={"help": "published weights, a .bin file", "required": True})
    target: str = field(default="", metadata={"help": "folder to write", "required": True})
    tokenizer: str | None = field(default=None, metadata={"help": "tokenizer file (default: the one beside the weights)"})


def run(options: Options) -> Path:
    """See :func:`llm_mer.backbones.convert.llama2c.convert_llama2c`."""
    from llm_mer.backbones.convert.llama2c import convert_llama2c

    tokenizer = None if options.tokenizer is None else Path(options.tokenizer)
    return convert_llama2c(Path(options.source), Path(options.target), tokenizer)
