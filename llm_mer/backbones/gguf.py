"""Language models in GGUF files, as plain weights: transformers dequantises them, this module checks that it can.

What transformers would leave out without a word is refused: scaled positions, biases, and the rules by which a tokenizer
cuts a text into words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_mer.backbones.gguf_header import GgufHeader, check_tensors_lie_inside, read_gguf_header
from llm_mer.errors import UserError

GPT2_WORDS = (
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"),
    # These cut numbers into digits too, and so have no token of several.
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
)
"""Values of ``tokenizer.ggml.pre`` for which GPT-2's rules give the model's own tokens."""
SCALED_POSITIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
EMBEDDING = "token_embd.weight"


def check_gguf(path: Path) -> GgufHeader:
    """Check that a GGUF file is complete, and holds a language model that transformers reads completely.

    Raises:
        UserError: the package ``gguf`` is missing; a file that is none, is cut off or is one of several parts; an
            architecture, tokenizer or part of the model that would not be read, or sizes that contradict its tensors.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise UserError(
            f"backbone: {path} is a GGUF file, which needs the package gguf: pip install 'llm-mer[gguf]'"
        ) from None
    header = read_gguf_header(path)
    check_tensors_lie_inside(path, header, {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()})
    parts = header.values.get("split.count", 1)
    if parts > 1:
        raise UserError(f"backbone: {path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge")
    if EMBEDDING not in header.tensors or not header.of_model("block_count"):
        raise UserError(
            f"backbone: {path} holds no language model (general.architecture {header.architecture!r}, no {EMBEDDING})"
        )
    _check_sizes(path, header)
    _check_read_completely(path, header)
    _check_tokenizer(path, header)
    return header


def _check_sizes(path: Path, header: GgufHeader) -> None:
    """Layers and widths are built before any tensor is read, so a wrong number would exhaust the memory."""
    layers, width = header.of_model("block_count"), header.of_model("embedding_length")
    if layers > len(header.tensors):
        raise UserError(f"backbone: {path} is damaged: it says {layers} layers and has {len(header.tensors)} tensors")
    shape = header.tensors[EMBEDDING].shape
    tokens = header.values.get("tokenizer.ggml.tokens")
    if shape[0] != width or (tokens is not None and len(shape) > 1 and shape[1] < tokens):
        raise UserError(
            f"backbone: {path} is damaged: its embedding is {' × '.join(map(str, shape))}, and it says {width} for each of "
            f"{tokens} tokens"
        )


def _check_read_completely(path: Path, header: GgufHeader) -> None:
    scaled = [name for name in SCALED_POSITIONS if name in header.tensors]
    kind = header.of_model("rope.scaling.type")
    if scaled or kind not in (None, "none"):
        raise UserError(
            f"backbone: {path} scales its positions ({scaled[0] if scaled else f'rope.scaling.type {kind}'}), which "
            "transformers does not read from a GGUF file; name the model's own folder or hub name"
        )


def _check_tokenizer(path: Path, header: GgufHeader) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS  # transformers 5.23

    kind, rules = header.values.get("tokenizer.ggml.model"), header.values.get("tokenizer.ggml.pre")
    if kind is None or not header.values.get("tokenizer.ggml.tokens"):
        raise UserError(f"backbone: {path} holds no tokenizer; name the model's own folder or hub name")
    if kind == "gpt2" and rules not in (*GPT2_WORDS, *GGUF_PRE_TOKENIZER_SPLITS):
        found = "no tokenizer.ggml.pre" if rules is None else f"tokenizer.ggml.pre {rules!r}"
        raise UserError(
            f"backbone: {path} has {found}, whose rules transformers does not know, so that text would become other tokens "
            "than in the model's training; name the model's own folder or hub name"
        )


def gguf_options(path: Path) -> dict[str, Any]:
    """Options of ``from_pretrained`` for :func:`check_gguf`'s file."""
    from transformers import GgufConfig

    # Without this, transformers keeps weights in their blocks where it has kernels for them, which LoRA cannot adapt, and
    # marks the model as one that cannot be saved.
    return {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}


def check_biases(model: PreTrainedModel, path: Path, header: GgufHeader) -> None:
    """Check that the model has a place for every bias of its file.

    Raises:
        UserError: it has not, and transformers left some out without a word.
    """
    found = sum(name.endswith(".bias") for name in header.tensors)
    placed = sum(name.endswith(".bias") for name, _ in model.named_parameters())
    if found > placed:
        raise UserError(
            f"backbone: {path} has {found} biases and the model that transformers builds from it {placed}, so that some "
            "would not be read; name the model's own folder or hub name"
        )


def without_added_tokens(tokenizer: Any, header: GgufHeader) -> Any:
    """A GGUF file's tokenizer without tokens that it does not name, which the model has no embedding of.

    transformers (5.23) builds a byte-level one as GPT-2's, whose end of text it adds where the model has another.
    """
    count = int(header.values["tokenizer.ggml.tokens"])
    if len(tokenizer) <= count:
        return tokenizer
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < count]
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), chat_template=tokenizer.chat_template, **special
    )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Without the bar that transformers (5.23) draws while it dequantises, whatever its own settings say."""
    from transformers import modeling_gguf_pytorch_utils as foreign

    own = foreign.tqdm
    foreign.tqdm = partial(own, disable=True)
    try:
        yield
    finally:
        foreign.tqdm = own
