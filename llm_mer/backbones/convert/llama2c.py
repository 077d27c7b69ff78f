"""llama2.c checkpoints (karpathy's binary layout) as transformers ``LlamaForCausalLM`` folders with a fast tokenizer."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import processors
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from llm_mer.backbones.convert.folders import ShardWriter
from llm_mer.backbones.convert.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    BpeVocabulary,
    bpe_tokenizer,
    read_sentencepiece,
)
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import new_folder

HEADER_BYTES = 28
VERSIONED_MAGIC = 0x616B3432  # "ak42": llama2.c's later layouts, which carry a version after it
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
DEFAULT_SHARD_BYTES = 1 << 30


@dataclass
class Llama2cHeader:
    """The header of a legacy file: seven int32. A negative vocabulary size means that the output head is not tied."""

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each float32 array, in the file's order."""
        n, d, kv = self.layers, self.dim, self.kv_heads * self.head_dim
        table = (self.length, self.head_dim // 2)
        arrays: list[tuple[str, tuple[int, ...]]] = [
            ("token_embedding", (self.vocabulary, d)),
            ("rms_att", (n, d)),
            ("wq", (n, d, d)),
            ("wk", (n, kv, d)),
            ("wv", (n, kv, d)),
            ("wo", (n, d, d)),
            ("rms_ffn", (n, d)),
            ("w1", (n, self.hidden_dim, d)),
            ("w2", (n, d, self.hidden_dim)),
            ("w3", (n, self.hidden_dim, d)),
            ("rms_final", (d,)),
            ("freq_cis_real", table),
            ("freq_cis_imag", table),
        ]
        return arrays if self.tied else [*arrays, ("wcls", (self.vocabulary, d))]


def convert_llama2c(source: Path, target: Path, tokenizer: Path | None = None) -> Path:
    """Convert a llama2.c ``.bin`` (legacy layout) and its tokenizer into a ``LlamaForCausalLM`` folder.

    Array → transformers name: ``token_embedding → model.embed_tokens``, per layer ``rms_att → input_layernorm``,
    ``wq, wk, wv, wo → self_attn.{q,k,v,o}_proj``, ``rms_ffn → post_attention_layernorm``, ``w1, w3, w2 →
    mlp.{gate,up,down}_proj``, then ``rms_final → model.norm`` and, where not tied, ``wcls → lm_head``. The rotary tables
    are dropped: they hold ``cos, sin(t · 10000^(-2i/d))``, which follows from the configuration.

    Rows of ``wq`` and ``wk``: the file rotates the neighbours (2i, 2i+1) of a head, transformers rotates (i, i + d/2), so
    row 2i of a head becomes i and row 2i+1 becomes i + d/2. Attention scores stay the same, since queries and keys are
    reordered alike.

    Args:
        source: the ``.bin``. target: a folder that is new or empty; it appears completely or not at all.
        tokenizer: ``tokenizer.bin`` or a SentencePiece ``.model``; None looks beside the source for ``tokenizer.*`` and
            ``tok<vocabulary>.*``.

    Raises:
        UserError: no legacy checkpoint, a length other than its header says, no tokenizer or another model's, no space.
    """
    source, target = Path(source), Path(target)
    header = read_header(source)
    tokenizer = find_tokenizer(source, header) if tokenizer is None else Path(tokenizer)
    fast_tokenizer = load_tokenizer(tokenizer, header.vocabulary)
    config = LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=header.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with new_folder(target, source.stat().st_size) as staging:
        writer = ShardWriter(staging, DEFAULT_SHARD_BYTES)
        for name, array in read_tensors(source, header):
            writer.add(name, array)
        writer.close()
        config.save_pretrained(staging)
        # llama2.c's own models were trained on <s> story <s> story …: there <s> ends a text.
        GenerationConfig(bos_token_id=1, eos_token_id=[2, 1], pad_token_id=0).save_pretrained(staging)
        fast_tokenizer.save_pretrained(staging)
    return target


def read_header(source: Path) -> Llama2cHeader:
    """Read the header and check that the file is exactly as long as it says. Raises :class:`UserError`."""
    try:
        with source.open("rb") as stream:
            raw = stream.read(HEADER_BYTES)
        size = source.stat().st_size
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    if len(raw) < HEADER_BYTES:
        raise UserError(f"{source} has {len(raw)} bytes; a llama2.c checkpoint begins with a header of {HEADER_BYTES}")
    numbers = struct.unpack("<7i", raw)
    if numbers[0] == VERSIONED_MAGIC:
        raise UserError(
            f"{source} is a llama2.c checkpoint of version {numbers[1]}; export the legacy layout: export.py --version 0"
        )
    dim, hidden, layers, heads, kv_heads, vocabulary, length = numbers
    header = Llama2cHeader(dim, hidden, layers, heads, kv_heads, abs(vocabulary), length, vocabulary > 0)
    found = f"dim {dim}, hidden_dim {hidden}, layers {layers}, heads {heads}, kv_heads {kv_heads}, length {length}"
    if min(dim, hidden, layers, heads, kv_heads, header.vocabulary, length) < 1 or dim % heads or heads % kv_heads:
        raise UserError(f"{source} is not a llama2.c checkpoint of the legacy layout: its header would say {found}")
    if header.head_dim % 2:
        raise UserError(f"{source}: heads of odd size {header.head_dim} cannot be rotated in pairs")
    expected = HEADER_BYTES + 4 * sum(math.prod(shape) for _, shape in header.arrays())
    if size != expected:
        raise UserError(f"{source} has {size} bytes, but its header ({found}) asks for {expected}")
    return header


def read_tensors(source: Path, header: Llama2cHeader) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under its transformers name; one at a time is read into memory."""
    data = np.memmap(source, dtype="<f4", mode="r", offset=HEADER_BYTES)
    arrays, start = {}, 0
    for name, shape in header.arrays():
        arrays[name] = data[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    # Keyed by the transformers name: the file's array and, for queries and keys, the number of heads to reorder.
    layer_names: dict[str, tuple[str, int | None]] = {
        "input_layernorm": ("rms_att", None),
        "self_attn.q_proj": ("wq", header.heads),
        "self_attn.k_proj": ("wk", header.kv_heads),
        "self_attn.v_proj": ("wv", None),
        "self_attn.o_proj": ("wo", None),
        "post_attention_layernorm": ("rms_ffn", None),
        "mlp.gate_proj": ("w1", None),
        "mlp.up_proj": ("w3", None),
        "mlp.down_proj": ("w2", None),
    }
    yield "model.embed_tokens.weight", _to_tensor(arrays["token_embedding"])
    for layer in range(header.layers):
        for name, (array, heads) in layer_names.items():
            tensor = _to_tensor(arrays[array][layer])
            yield f"model.layers.{layer}.{name}.weight", tensor if heads is None else reorder_rotary_rows(tensor, heads)
    yield "model.norm.weight", _to_tensor(arrays["rms_final"])
    if not header.tied:
        yield "lm_head.weight", _to_tensor(arrays["wcls"])


def reorder_rotary_rows(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head: 2i → i, 2i+1 → i + d/2, for ``(heads · d, inputs)``."""
    rows, inputs = weight.shape
    return weight.view(heads, rows // heads // 2, 2, inputs).transpose(1, 2).reshape(rows, inputs)


def find_tokenizer(source: Path, header: Llama2cHeader) -> Path:
    """The tokenizer beside a checkpoint; a SentencePiece model is preferred, since it also says how to treat spaces."""
    stems = (f"tok{header.vocabulary}", "tokenizer")
    candidates = [source.parent / f"{stem}.{suffix}" for stem in stems for suffix in ("model", "bin")]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"{source}: no tokenizer beside it ({', '.join(path.name for path in candidates)}); name its file")


def load_tokenizer(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """``tokenizer.bin`` or a SentencePiece model as a fast tokenizer that opens a text with ``<s>``."""
    pieces = read_tokenizer_bin(path) if path.suffix == ".bin" else read_sentencepiece(path)
    if len(pieces.pieces) != vocabulary:
        raise UserError(f"tokenizer {path} has {len(pieces.pieces)} pieces, the checkpoint's vocabulary {vocabulary}")
    found = [(piece, kind) for piece, _, kind in pieces.pieces[:3]]
    if found != [(UNK, UNKNOWN), (BOS, CONTROL), (EOS, CONTROL)]:
        raise UserError(f"tokenizer {path}: ids 0, 1, 2 are {[p for p, _ in found]}; llama2.c has {UNK}, {BOS}, {EOS}")
    backend = bpe_tokenizer(pieces, path)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def read_tokenizer_bin(path: Path) -> BpeVocabulary:
    """llama2.c's ``tokenizer.bin``: int32 longest piece, then per id float32 score, int32 bytes, the bytes.

    The export writes spaces for ``▁`` and newlines around ``<s>`` and ``</s>``, and drops the piece types: ids 0, 1, 2 are
    unknown, begin and end, the next 256 the bytes. As in ``run.c``, text is prepared only by adding the dummy prefix.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer {path} cannot be read: {error}") from error
    pieces: list[tuple[str, float, int]] = []
    position = 4
    try:
        longest = struct.unpack_from("<i", raw)[0]
        while position < len(raw):
            score, size = struct.unpack_from("<fi", raw, position)
            position += 8
            if not 0 <= size <= longest or position + size > len(raw):
                raise ValueError(f"piece {len(pieces)} would have {size} bytes")
            text = raw[position : position + size].decode("utf-8")
            position += size
            i = len(pieces)
            if i < 3:
                pieces.append((text.strip("\n"), score, UNKNOWN if i == 0 else CONTROL))
            elif i < 259 and text == f"<0x{i - 3:02X}>":
                pieces.append((text, score, BYTE))
            else:
                pieces.append((text.replace(" ", SPACE), score, NORMAL))
    except (struct.error, ValueError) as error:
        raise UserError(f"tokenizer {path} is not a llama2.c tokenizer.bin: {error}") from None
    return BpeVocabulary(pieces)


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
