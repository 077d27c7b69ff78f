"""GGUF files of very small models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_level_tokenizer(texts: list[str], size: int = 400) -> Any:
    """A byte-level BPE of GPT-2's kind with a few special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    plain.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def small_llama(vocabulary: int, seed: int = 0) -> Any:
    """A random Llama with grouped key and value heads, its rows whole blocks of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6)
    return model.eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: the two halves of each head's rotation alternate."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    quantised: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    **values: Any,
) -> Path:
    """Write a Llama as GGUF in float32.

    Args:
        quantised: llama.cpp's names of tensors in Q8_0 instead. extra: more tensors. values: of the header, in place of the
            usual ones; dots are written as ``__``, and None leaves one out.
    """
    import gguf

    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    header: dict[str, tuple[str, Any]] = {
        "llama.block_count": ("uint32", config.num_hidden_layers),
        "llama.context_length": ("uint32", config.max_position_embeddings),
        "llama.embedding_length": ("uint32", config.hidden_size),
        "llama.feed_forward_length": ("uint32", config.intermediate_size),
        "llama.attention.head_count": ("uint32", config.num_attention_heads),
        "llama.attention.head_count_kv": ("uint32", config.num_key_value_heads),
        "llama.attention.layer_norm_rms_epsilon": ("float32", config.rms_norm_eps),
        "llama.rope.freq_base": ("float32", 10000.0),
        "llama.rope.dimension_count": ("uint32", config.hidden_size // config.num_attention_heads),
        "llama.vocab_size": ("uint32", config.vocab_size),
        "tokenizer.ggml.model": ("string", "gpt2"),
        "tokenizer.ggml.pre": ("string", "gpt-2"),
        "tokenizer.ggml.bos_token_id": ("uint32", tokenizer.bos_token_id),
        "tokenizer.ggml.eos_token_id": ("uint32", tokenizer.eos_token_id),
        "tokenizer.ggml.unknown_token_id": ("uint32", tokenizer.unk_token_id),
        "tokenizer.ggml.padding_token_id": ("uint32", tokenizer.pad_token_id),
        "tokenizer.chat_template": ("string", tokenizer.chat_template),
    }
    for name, value in values.items():
        key = name.replace("__", ".")
        kind = header.get(key, ("string" if isinstance(value, str) else "uint32", None))[0]
        header[key] = (kind, value)
    for key, (kind, value) in header.items():
        if value is not None:
            getattr(writer, f"add_{kind}")(key, value)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    special = set(tokenizer.all_special_tokens)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3 if token in special else 1 for token in tokens])
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in merges])
    for name, value in {**_tensors(model), **(extra or {})}.items():
        if name in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: Any) -> dict[str, np.ndarray]:
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    heads = {"self_attn.q_proj": model.config.num_attention_heads, "self_attn.k_proj": model.config.num_key_value_heads}
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in LAYER_NAMES.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            found[f"blk.{layer}.{theirs}.weight"] = interleaved(value, heads[ours]) if ours in heads else value
    return found
