"""ChatGLM3's published layout as a transformers ``GlmForCausalLM`` folder with a fast tokenizer; none of its code runs."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, processors
from torch import Tensor
from transformers import GenerationConfig, GlmConfig, PreTrainedTokenizerFast

from llm_mer.backbones.convert.folders import ShardWriter
from llm_mer.backbones.convert.llama2c import BOS, DEFAULT_SHARD_BYTES, EOS, UNK
from llm_mer.backbones.convert.sentencepiece import bpe_tokenizer, read_sentencepiece
from llm_mer.errors import UserError, first_line
from llm_mer.storage.atomic_files import new_folder
from llm_mer.storage.json_files import read_json, read_json_object

# In the order of their ids, which follow the SentencePiece pieces directly.
SPECIAL_TOKENS = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]

# The published code encodes the header ("\n") and the message apart, so each has its dummy prefix. Here the stretch after a
# role token has one, and the space before the message becomes the message's; no piece spans a newline, so both encode as
# they do apart. An empty message encodes to nothing, hence no space. The published generation prompt is the role token
# alone, since a tool's name may follow it; an answer stands behind the line end (llm_mer.prompting.answer_start).
CHAT_TEMPLATE = (
    "[gMASK]sop{% for message in messages %}<|{{ message['role'] }}|>{{ message['metadata'] }}\n"
    "{% if message['content'] %} {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# What the published modelling code can be told to do and GlmForCausalLM cannot: field, the value it must have.
REQUIRED_VALUES: list[tuple[str, Any]] = [
    ("add_bias_linear", False),
    ("apply_residual_connection_post_layernorm", False),
    ("multi_query_attention", True),
    ("post_layer_norm", True),
    ("rmsnorm", True),
    ("quantization_bit", 0),
    ("tie_word_embeddings", False),
]


def convert_chatglm3(source: Path, target: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> Path:
    """Convert a published ChatGLM3 folder, weight file by weight file.

    Source key (after ``transformer.``) → transformers name, d the head size::

        embedding.word_embeddings                              model.embed_tokens
        encoder.layers.N.input_layernorm                       model.layers.N.input_layernorm
        encoder.layers.N.self_attention.query_key_value        rows [heads·d, groups·d, groups·d] → self_attn.{q,k,v}_proj
        encoder.layers.N.self_attention.dense                  self_attn.o_proj
        encoder.layers.N.post_attention_layernorm              post_attention_layernorm
        encoder.layers.N.mlp.dense_h_to_4h                     mlp.gate_up_proj (gate rows first in both)
        encoder.layers.N.mlp.dense_4h_to_h                     mlp.down_proj
        encoder.final_layernorm                                model.norm
        output_layer                                           lm_head
        rotary_pos_emb.inv_freq                                dropped; rope_theta = 10000 · rope_ratio says it

    Memory: the weight file being read (mapped, so the system may drop it) and one unwritten shard.

    Args:
        source: folder with ``config.json``, ``tokenizer.model`` and the weights (``.safetensors`` or ``.bin``, one file or
            several with their index). target: a folder that is new or empty; it appears completely or not at all.
        max_shard_bytes: size the written weight files stay below.

    Raises:
        UserError: a missing or damaged file, a weight that is missing, unknown or of another shape, no room.
    """
    source, target = Path(source), Path(target)
    config = read_config(source / "config.json")
    tokenizer = load_tokenizer(source / "tokenizer.model", config.vocab_size)
    files = weight_files(source)
    mapping = weight_mapping(config)
    seen: set[str] = set()
    dtypes: set[torch.dtype] = set()
    with new_folder(target, sum(path.stat().st_size for path in files)) as staging:
        writer = ShardWriter(staging, max_shard_bytes)
        for path in files:
            for key, tensor in read_tensors(path):
                if key == "transformer.rotary_pos_emb.inv_freq":
                    continue
                if key not in mapping:
                    raise UserError(f"{path}: {key!r} is no weight of a ChatGLM3 of {config.num_hidden_layers} layers")
                if key in seen:
                    raise UserError(f"{path}: {key!r} was in an earlier file already")
                seen.add(key)
                shape, parts = mapping[key]
                if tuple(tensor.shape) != shape:
                    raise UserError(f"{path}: {key!r} is {tuple(tensor.shape)}, but config.json asks for {shape}")
                if not tensor.is_floating_point():
                    raise UserError(f"{path}: {key!r} is {tensor.dtype}; quantised weights cannot be converted")
                dtypes.add(tensor.dtype)
                for (name, rows), part in zip(parts, tensor.split([rows for _, rows in parts]), strict=True):
                    assert len(part) == rows
                    writer.add(name, part)
        missing = sorted(set(mapping) - seen)
        if missing:
            raise UserError(f"{source}: its weight files lack {len(missing)} weights, e.g. {missing[0]!r}")
        writer.close()
        config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        config.save_pretrained(staging)
        # The published chat stops at the end token and where the model would speak for the user or a tool.
        ids = tokenizer.get_vocab()
        stops = [ids[EOS], ids["<|user|>"], ids["<|observation|>"]]
        GenerationConfig(eos_token_id=stops, pad_token_id=0).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    return target


def read_config(path: Path) -> GlmConfig:
    """The published ``config.json`` as a ``GlmConfig``.

    ``vocab_size = padded_vocab_size, intermediate_size = ffn_hidden_size, num_key_value_heads = multi_query_group_num,
    head_dim = kv_channels, rms_norm_eps = layernorm_epsilon, attention_bias = add_qkv_bias, rope_theta = 10000 ·
    rope_ratio``, rotary on the first half of each head.
    """
    entry = read_json_object(path, f"{path} cannot be read: no such file")
    if entry.get("model_type") != "chatglm":
        raise UserError(f"{path}: model_type is {entry.get('model_type')!r}; a published ChatGLM3 has 'chatglm'")
    for field, required in REQUIRED_VALUES:
        if entry.get(field, required) != required:
            raise UserError(f"{path}: {field} is {entry[field]!r}; only {required!r} can be converted")
    if entry.get("pre_seq_len") is not None:
        raise UserError(f"{path}: pre_seq_len is {entry['pre_seq_len']!r}: a prefix-tuned model cannot be converted")

    def positive_number(field: str, default: Any = None, integer: bool = True) -> Any:
        value = entry.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{path}: {field} is {value!r}; a positive {'whole ' if integer else ''}number would be right")
        return value

    heads, groups, head_dim = (
        positive_number("num_attention_heads"),
        positive_number("multi_query_group_num"),
        positive_number("kv_channels"),
    )
    if heads % groups:
        raise UserError(f"{path}: num_attention_heads {heads} is no multiple of multi_query_group_num {groups}")
    if head_dim % 4:
        raise UserError(f"{path}: kv_channels is {head_dim}; its half is rotated in pairs, so a multiple of 4 is right")
    bias = entry.get("add_qkv_bias", False)
    if not isinstance(bias, bool):
        raise UserError(f"{path}: add_qkv_bias is {bias!r}; true or false would be right")
    return GlmConfig(
        vocab_size=positive_number("padded_vocab_size"),
        hidden_size=positive_number("hidden_size"),
        intermediate_size=positive_number("ffn_hidden_size"),
        num_hidden_layers=positive_number("num_layers"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        max_position_embeddings=positive_number("seq_length"),
        rms_norm_eps=positive_number("layernorm_epsilon", 1e-5, integer=False),
        attention_bias=bias,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * positive_number("rope_ratio", 1, integer=False),
            "partial_rotary_factor": 0.5,
        },
        pad_token_id=0,
        eos_token_id=2,
        architectures=["GlmForCausalLM"],
    )


def weight_mapping(config: GlmConfig) -> dict[str, tuple[tuple[int, ...], list[tuple[str, int]]]]:
    """Source key → its shape, and the transformers names its rows go to with their counts."""
    hidden, ffn, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    queries, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    mapping: dict[str, tuple[tuple[int, ...], list[tuple[str, int]]]] = {}

    def add_weight(key: str, name: str, *shape: int) -> None:
        mapping[f"transformer.{key}.weight"] = (shape, [(f"{name}.weight", shape[0])])

    add_weight("embedding.word_embeddings", "model.embed_tokens", vocabulary, hidden)
    for i in range(config.num_hidden_layers):
        key, name = f"encoder.layers.{i}", f"model.layers.{i}"
        add_weight(f"{key}.input_layernorm", f"{name}.input_layernorm", hidden)
        rows = [("q_proj", queries), ("k_proj", groups), ("v_proj", groups)]
        for kind, columns in (("weight", (hidden,)), ("bias", ())) if config.attention_bias else (("weight", (hidden,)),):
            mapping[f"transformer.{key}.self_attention.query_key_value.{kind}"] = (
                (queries + 2 * groups, *columns),
                [(f"{name}.self_attn.{projection}.{kind}", count) for projection, count in rows],
            )
        add_weight(f"{key}.self_attention.dense", f"{name}.self_attn.o_proj", hidden, queries)
        add_weight(f"{key}.post_attention_layernorm", f"{name}.post_attention_layernorm", hidden)
        add_weight(f"{key}.mlp.dense_h_to_4h", f"{name}.mlp.gate_up_proj", 2 * ffn, hidden)
        add_weight(f"{key}.mlp.dense_4h_to_h", f"{name}.mlp.down_proj", hidden, ffn)
    add_weight("encoder.final_layernorm", "model.norm", hidden)
    add_weight("output_layer", "lm_head", vocabulary, hidden)
    return mapping


def weight_files(source: Path) -> list[Path]:
    """The folder's weight files: safetensors before ``.bin``, an index before a single file."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = source / f"{name}.index.json"
        if index.is_file():
            try:
                names = sorted(set(read_json(index)["weight_map"].values()))
            except (OSError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index}: not an index of weight files: {error!r}") from None
            missing = [file for file in names if Path(file).name != file or not (source / file).is_file()]
            if missing or not names:
                raise UserError(f"{index} names {len(names)} files, of which the folder lacks {', '.join(missing) or 'all'}")
            return [source / file for file in names]
        if (source / name).is_file():
            return [source / name]
    raise UserError(f"{source} has no weights: model.safetensors or pytorch_model.bin, or several with their index.json")


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, memory-mapped. ``.bin`` files are read with ``weights_only``: no foreign object is built."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or not of torch's zip format: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights and is not read: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; a dictionary of weights would be right")
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {key!r} is a {type(tensor).__name__}; a weight would be right")
        yield str(key), tensor


def load_tokenizer(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """ChatGLM3's ``tokenizer.model`` as a fast tokenizer: a text is opened with ``[gMASK] sop``, as the published one does.

    The special tokens are cut out of any text, a message that spells ``<|user|>`` included. ``sop`` and ``eop`` are also
    parts of words (philo-sop-hy, p-eop-le), so they count only as words of their own; the published tokenizer cuts ``sop``
    out of words too. (A normalised token bound to the stretch after ``[gMASK]`` would spare the word as well, but tokenizers
    0.23 then decodes the id to the normalised text and no longer skips it as special.)
    """
    pieces = read_sentencepiece(path)
    first = len(pieces.pieces)
    if [piece for piece, _, _ in pieces.pieces[:3]] != [UNK, BOS, EOS]:
        raise UserError(f"tokenizer {path}: ids 0, 1, 2 are {[p[0] for p in pieces.pieces[:3]]}, not {UNK}, {BOS}, {EOS}")
    if first + len(SPECIAL_TOKENS) > vocabulary:
        raise UserError(
            f"tokenizer {path}: {first} pieces and {len(SPECIAL_TOKENS)} special tokens do not fit in the "
            f"padded_vocab_size {vocabulary}"
        )
    backend = bpe_tokenizer(pieces, path)
    backend.add_special_tokens(
        [AddedToken(token, normalized=False, special=True, single_word=token in ("sop", "eop")) for token in SPECIAL_TOKENS]
    )
    for i, token in enumerate(SPECIAL_TOKENS):
        if backend.token_to_id(token) != first + i:
            raise UserError(f"tokenizer {path}: {token} is the piece {backend.token_to_id(token)} already")
    opening = [(token, first + SPECIAL_TOKENS.index(token)) for token in ("[gMASK]", "sop")]
    backend.post_processor = processors.TemplateProcessing(single="[gMASK] sop $A", special_tokens=opening)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=UNK,
        unk_token=UNK,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
