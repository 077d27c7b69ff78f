"""Options of the conversion commands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ConvertConfig:
    """Options of ``llm-mer convert-chatglm3`` and ``llm-mer convert-llama2c``."""

    source: str = field(
        default="", metadata={"help": "published weights: a folder (ChatGLM3) or a .bin file (llama2.c)", "required": True}
    )
    target: str = field(default="", metadata={"help": "folder to write", "required": True})
    tokenizer: str | None = field(
        default=None, metadata={"help": "llama2.c: tokenizer file (default: the one beside the weights)"}
    )


def run_chatglm3(config: ConvertConfig) -> Path:
    """Convert ChatGLM3."""
    from llm_mer.backbones.convert.chatglm3 import convert_chatglm3

    return convert_chatglm3(Path(config.source), Path(config.target))


def run_llama2c(config: ConvertConfig) -> Path:
    """Convert llama2.c."""
    from llm_mer.backbones.convert.llama2c import convert_llama2c

    return convert_llama2c(
        Path(config.source), Path(config.target), None if config.tokenizer is None else Path(config.tokenizer)
    )
