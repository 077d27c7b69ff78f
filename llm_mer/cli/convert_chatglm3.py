"""``llm-mer convert-chatglm3``: published ChatGLM3 weights and tokenizer as a GLM folder of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = ("llm-mer convert-chatglm3 --source raw/chatglm3-6b-base --target backbones/chatglm3-6b-base",)


@dataclass
class Options:
    """Options of ``llm-mer convert-chatglm3``."""

    source: str = field(default="", metadata={"help": "folder of the published weights", "required": True})
    target: str = field(default="", metadata={"help": "folder to write", "required": True})


def run(options: Options) -> Path:
    """See :func:`llm_mer.backbones.convert.chatglm3.convert_chatglm3`."""
    from llm_mer.backbones.convert.chatglm3 import convert_chatglm3

    return convert_chatglm3(Path(options.source), Path(options.target))
