"""The ChatGLM3 converter against the architecture written once more in NumPy, its tokenizer against SentencePiece."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from file_limit import file_size_limit
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, GlmForCausalLM

from llm_mer.backbones.convert.chatglm3 import SPECIAL_TOKENS, convert_chatglm3, load_tokenizer
from llm_mer.backbones.loading import load_backbone
from llm_mer.backbones.tiny_text import generate_lines
from llm_mer.errors import UserError

SHARED = Path(os.environ.get("LLM_MER_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
PUBLISHED = SHARED / "tokenizers" / "chatglm3" / "tokenizer.model"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"{PUBLISHED} is not on this machine")

CONFIG = {
    "_name_or_path": "THUDM/chatglm3-6b",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 40,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 32,
    "kv_channels": 12,  # on purpose not hidden_size / num_attention_heads
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 3,
    "original_rope": True,
    "padded_vocab_size": 700,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 128,
    "use_cache": True,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A SentencePiece model made like ChatGLM3's: BPE, bytes, identity, no squeezing of spaces."""
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=(line for text in generate_lines(0, 300) for line in text.split("\n")),
            model_writer=stream,
            vocab_size=680,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=2,
        )
    return path


def random_weights(config, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * 0.3).to(dtype)

    hidden, ffn, heads = config["hidden_size"], config["ffn_hidden_size"], config["num_attention_heads"]
    size, groups = config["kv_channels"], config["multi_query_group_num"]
    state = {"transformer.embedding.word_embeddings.weight": normal(config["padded_vocab_size"], hidden)}
    state["transformer.rotary_pos_emb.inv_freq"] = normal(size // 4)
    for i in range(config["num_layers"]):
        key = f"transformer.encoder.layers.{i}"
        state[f"{key}.input_layernorm.weight"] = 1 + normal(hidden)
        state[f"{key}.self_attention.query_key_value.weight"] = normal((heads + 2 * groups) * size, hidden)
        if config["add_qkv_bias"]:
            state[f"{key}.self_attention.query_key_value.bias"] = normal((heads + 2 * groups) * size)
        state[f"{key}.self_attention.dense.weight"] = normal(hidden, heads * size)
        state[f"{key}.post_attention_layernorm.weight"] = 1 + normal(hidden)
        state[f"{key}.mlp.dense_h_to_4h.weight"] = normal(2 * ffn, hidden)
        state[f"{key}.mlp.dense_4h_to_h.weight"] = normal(hidden, ffn)
    state["transformer.encoder.final_layernorm.weight"] = 1 + normal(hidden)
    state["transformer.output_layer.weight"] = normal(config["padded_vocab_size"], hidden)
    return state


def write_published(folder, model, config=None, state=None, layout="bin", shards=3):
    """A folder as ChatGLM3-6B is published: configuration, tokenizer, weights in one file or in shards with an index."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **(config or {})}
    state = random_weights(config) if state is None else state
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(model, folder / "tokenizer.model")
    stem, suffix = ("pytorch_model", "bin") if layout == "bin" else ("model", "safetensors")
    keys, weight_map = list(state), {}
    for i in range(shards):
        name = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        part = {key: state[key] for key in keys[i::shards]}
        torch.save(part, folder / name) if layout == "bin" else save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state


def reference_logits(state, config, tokens):
    """The published architecture over one sequence, float64.

    x += dense(attention(norm(x))), x += W2 (silu(a) · b) with [a; b] = W1 norm(x). Query head j reads group j // (heads /
    groups). Of each head's d numbers the first d/2 turn in neighbouring pairs i by t · base^(-2i/(d/2)), the rest do not.
    """
    w = {key.removeprefix("transformer."): value.double().numpy() for key, value in state.items()}
    n, heads, size, groups = (
        len(tokens), config["num_attention_heads"], config["kv_channels"], config["multi_query_group_num"]
    )  # fmt: skip
    base = 10000.0 * config.get("rope_ratio", 1)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config["layernorm_epsilon"]) * weight

    def turn(x):
        x = x.copy()
        for t in range(n):
            for i in range(size // 4):
                angle = t * base ** (-2 * i / (size // 2))
                a, b = x[t, :, 2 * i].copy(), x[t, :, 2 * i + 1].copy()
                x[t, :, 2 * i], x[t, :, 2 * i + 1] = (
                    a * np.cos(angle) - b * np.sin(angle),
                    b * np.cos(angle) + a * np.sin(angle),
                )
        return x

    x = w["embedding.word_embeddings.weight"][tokens]
    for layer in range(config["num_layers"]):
        key = f"encoder.layers.{layer}"
        mixed = norm(x, w[f"{key}.input_layernorm.weight"]) @ w[f"{key}.self_attention.query_key_value.weight"].T
        mixed = mixed + w.get(f"{key}.self_attention.query_key_value.bias", 0)
        q, k, v = np.split(mixed.reshape(n, heads + 2 * groups, size), [heads, heads + groups], axis=1)
        q, k = turn(q), turn(k)
        out = np.zeros((n, heads, size))
        for t in range(n):
            for j in range(heads):
                group = j // (heads // groups)
                score = k[: t + 1, group] @ q[t, j] / np.sqrt(size)
                score = np.exp(score - score.max())
                out[t, j] = score / score.sum() @ v[: t + 1, group]
        x = x + out.reshape(n, -1) @ w[f"{key}.self_attention.dense.weight"].T
        wide = norm(x, w[f"{key}.post_attention_layernorm.weight"]) @ w[f"{key}.mlp.dense_h_to_4h.weight"].T
        a, b = np.split(wide, 2, axis=-1)
        x = x + a / (1 + np.exp(-a)) * b @ w[f"{key}.mlp.dense_4h_to_h.weight"].T
    return norm(x, w["encoder.final_layernorm.weight"]) @ w["output_layer.weight"].T


@pytest.mark.parametrize(
    ("layout", "shards", "changes"),
    [
        ("bin", 3, {}),
        ("bin", 1, {}),
        ("safetensors", 3, {}),
        ("safetensors", 1, {"multi_query_group_num": 1, "add_qkv_bias": False}),
        ("bin", 2, {"multi_query_group_num": 4, "rope_ratio": 50, "kv_channels": 8}),
    ],
)
def test_logits_equal_the_reference(tmp_path, small_model, layout, shards, changes):
    state = write_published(tmp_path / "published", small_model, changes, layout=layout, shards=shards)
    target = convert_chatglm3(tmp_path / "published", tmp_path / "converted", max_shard_bytes=60_000)
    backbone = load_backbone(target)
    assert isinstance(backbone.model, GlmForCausalLM)
    tokens = random.Random(0).choices(range(700), k=30)
    with torch.no_grad():
        logits = backbone.model(torch.tensor([tokens])).logits[0].double().numpy()
    expected = reference_logits(state, {**CONFIG, **changes}, tokens)
    assert np.abs(logits - expected).max() < 1e-4
    assert expected.std() > 0.5
    assert backbone.model.config.max_position_embeddings == 128
    assert GenerationConfig.from_pretrained(target).eos_token_id[0] == 2


def test_shards_are_small_and_indexed(tmp_path, small_model):
    write_published(tmp_path / "published", small_model)
    target = convert_chatglm3(tmp_path / "published", tmp_path / "many", max_shard_bytes=30_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        tensors = load_file(target / file)
        assert {name for name, place in index["weight_map"].items() if place == file} == set(tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 30_000 or len(tensors) == 1
        total += size
    assert total == index["metadata"]["total_size"]
    single = convert_chatglm3(tmp_path / "published", tmp_path / "one")
    assert [path.name for path in single.glob("model*")] == ["model.safetensors"]
    with pytest.raises(UserError, match="max_shard_bytes: 0"):
        convert_chatglm3(tmp_path / "published", tmp_path / "none", max_shard_bytes=0)
    assert not (tmp_path / "none").exists()


def test_half_precision_stays_half(tmp_path, small_model):
    state = random_weights(CONFIG, torch.float16)
    write_published(tmp_path / "published", small_model, state=state)
    target = convert_chatglm3(tmp_path / "published", tmp_path / "converted")
    weights = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    torch.testing.assert_close(weights["lm_head.weight"], state["transformer.output_layer.weight"], rtol=0, atol=0)
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"


def test_left_padding_changes_nothing(tmp_path, small_model):
    write_published(tmp_path / "published", small_model)
    backbone = load_backbone(convert_chatglm3(tmp_path / "published", tmp_path / "converted"))
    batch = backbone.tokenizer(["a b", "the weather was fine"], return_tensors="pt", padding=True)
    assert batch["attention_mask"][0, 0] == 0
    alone = backbone.tokenizer("a b", return_tensors="pt")
    options = {"max_new_tokens": 5, "do_sample": False}
    together = backbone.model.generate(**batch, **options)[0, batch["input_ids"].shape[1] :]
    single = backbone.model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
    assert together.tolist() == single.tolist()


# ---------------------------------------------------------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The fast tokenizer of the published model, saved and loaded again; and SentencePiece with the same file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = {**CONFIG, "padded_vocab_size": 65024, "hidden_size": 4, "num_layers": 1, "ffn_hidden_size": 4}
    write_published(folder / "published", PUBLISHED, config)
    converted = load_backbone(convert_chatglm3(folder / "published", folder / "converted"))
    return converted.tokenizer, sentencepiece.SentencePieceProcessor(model_file=str(PUBLISHED))


def texts(reference, count, seed=0):
    """English, Chinese, mixed, emoji, spaces, newlines, runs of one character, and characters that are no piece."""
    generator = random.Random(seed)
    pieces = [reference.id_to_piece(i).replace("▁", " ") for i in range(259, reference.get_piece_size())]
    chinese = [piece for piece in pieces if "一" <= piece[0] <= "鿿"]
    english = [piece for piece in pieces if piece.strip().isascii() and piece.strip().isalpha()]
    sentences = [text for text in generate_lines(seed, 300) if text]
    kinds = [
        lambda: generator.choice(sentences),
        lambda: " ".join(generator.choices(english, k=generator.randint(1, 20))),
        lambda: "".join(generator.choices(english, k=generator.randint(1, 20))),
        lambda: "".join(generator.choices(chinese or sentences, k=generator.randint(1, 20))),
        lambda: "".join(generator.choices(pieces, k=generator.randint(1, 20))),
        lambda: "".join(generator.choice("aAxwIo-_=.! \n\t*#/~。！…·\xa0") * generator.randint(1, 40) for _ in range(4)),
        lambda: "".join(generator.choices("abcdefghijklmnopqrstuvwxyz   ", k=generator.randint(0, 60))),
        lambda: "".join(
            chr(generator.randint(*generator.choice([(1, 126), (0xA0, 0xD7FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)])))
            for _ in range(generator.randint(1, 30))
        ),
        lambda: (
            generator.choice(sentences)
            + generator.choice(["😀", "👨‍👩‍👧", " 🇨🇳 ", "\r\n", "  ", "\n\n", "\u3000", "▁", "\ue000"])
        ),
    ]
    made = (kinds[i % len(kinds)]() for i in range(count))
    # As words of their own these two are special tokens: the documented exception, tested by itself.
    return [text for text in made if not re.search(r"(?<!\w)(sop|eop)(?!\w)", text)]


@needs_published
def test_fast_tokenizer_equals_sentencepiece(published):
    tokenizer, reference = published
    samples = [
        *texts(reference, 6000),
        *("", " ", "  ", "\n", " \n ", "x"),
        *(
            "philosophy of people",
            "soprano",
            "sops aeop Sop eop_ 1sop 按照sop执行",
            "<0x0A>",
            "<|users|>",
            "[mask]",
        ),
    ]
    for text in samples:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids), text
        assert len(ids) == 0 or max(ids) < 64789


@needs_published
def test_special_ids(published):
    tokenizer, _ = published
    expected = dict(zip(SPECIAL_TOKENS, range(64789, 64798), strict=True))
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS} == expected
    assert expected["[gMASK]"] == 64790
    assert expected["<|observation|>"] == 64797
    assert (tokenizer.eos_token_id, tokenizer.eos_token, tokenizer.pad_token_id) == (2, "</s>", 0)
    assert tokenizer("")["input_ids"] == [64790, 64792]
    assert tokenizer("hi")["input_ids"][:2] == [64790, 64792]
    assert tokenizer("[gMASK]sop<|user|>[MASK][sMASK]eop<|system|><|assistant|><|observation|>", add_special_tokens=False)[
        "input_ids"
    ] == [64790, 64792, 64795, 64789, 64791, 64793, 64794, 64796, 64797]
    assert tokenizer.decode([64790, 64792, 64795, 24954, 64796, 2], skip_special_tokens=True).strip() == "hello"
    assert tokenizer.decode([64790, 64792, 64795]) == "[gMASK]sop<|user|>"
    assert tokenizer.convert_ids_to_tokens([64792, 64793]) == ["sop", "eop"]
    assert 64792 in tokenizer("a sop to people", add_special_tokens=False)["input_ids"]  # the documented exception
    assert tokenizer.padding_side == "left"


def published_chat(reference, messages):
    """The published ``build_chat_input``: per message the role, the header line and the message, encoded apart."""
    roles = {"system": 64794, "user": 64795, "assistant": 64796, "observation": 64797}
    ids = [64790, 64792]
    for message in messages:
        ids += [
            roles[message["role"]],
            *reference.encode(f"{message.get('metadata', '')}\n"),
            *reference.encode(message["content"]),
        ]
    return [*ids, 64796]


@needs_published
def test_chat_template_equals_the_published_encoding(published):
    tokenizer, reference = published
    contents = [
        "hello",
        "你好，今天怎么样？",
        "",
        " two  spaces ",
        "\nline\n",
        "😀\t",
        "people",
        *texts(reference, 300, seed=1),
    ]
    for content in contents:
        messages = [{"role": "user", "content": content}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == published_chat(reference, messages), content
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    ) == ("[gMASK]sop<|user|>\n hello<|assistant|>")
    expected = [64790, 64792, 64795, 30910, 13, 24954, 64796]
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)["input_ids"]
        == expected
    )
    dialogue = [
        {"role": "system", "content": "You are ChatGLM3.\nAnswer briefly."},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "metadata": "get_weather", "content": "```python\ntool_call()\n```"},
        {"role": "observation", "content": '{"t": 22}'},
        {"role": "assistant", "content": "22 °C"},
        {"role": "user", "content": "谢谢"},
    ]
    assert tokenizer.apply_chat_template(dialogue, add_generation_prompt=True)["input_ids"] == published_chat(
        reference, dialogue
    )


def test_fast_tokenizer_of_a_small_model(small_model):
    """The same without the published file: here most Chinese characters fall back to bytes."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(small_model))
    tokenizer = load_tokenizer(small_model, 700)
    fallbacks = 0
    for text in texts(reference, 2000):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids), text
        fallbacks += any(3 <= i < 259 for i in ids)
    assert fallbacks > 500
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(680, 689))


# ------------------------------------------------------------------------------------------------------------------ refusals


def convert_bad(tmp_path, message):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        convert_chatglm3(tmp_path / "published", out / "model", max_shard_bytes=20_000)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "glm"}, "model_type is 'glm'"),
        ({"rmsnorm": False}, "rmsnorm is False; only True"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"quantization_bit": 4}, "quantization_bit is 4"),
        ({"pre_seq_len": 8}, "prefix-tuned"),
        ({"num_layers": "3"}, "num_layers is '3'; a positive whole number"),
        ({"ffn_hidden_size": 0}, "ffn_hidden_size is 0"),
        ({"multi_query_group_num": 3}, "no multiple"),
        ({"kv_channels": 10}, "kv_channels is 10"),
        ({"padded_vocab_size": 685}, "do not fit in the padded_vocab_size 685"),
        ({"hidden_size": 36}, r"is \(700, 32\), but config.json asks for \(700, 36\)"),
        ({"num_layers": 2}, "is no weight of a ChatGLM3 of 2 layers"),
        ({"num_layers": 4}, r"lack 7 weights, e.g. 'transformer.encoder.layers.3"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, small_model, changes, message):
    write_published(tmp_path / "published", small_model)
    (tmp_path / "published" / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    convert_bad(tmp_path, message)


def test_missing_and_damaged_files_are_refused(tmp_path, small_model):
    folder = tmp_path / "published"
    convert_bad(tmp_path, "config.json cannot be read")
    write_published(folder, small_model)
    part = folder / "pytorch_model-00002-of-00003.bin"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    convert_bad(tmp_path, "00002-of-00003.bin is damaged")
    part.unlink()
    convert_bad(tmp_path, "lacks pytorch_model-00002-of-00003.bin")
    part.write_bytes(whole)
    shutil.copyfile(part, folder / "pytorch_model-00003-of-00003.bin")
    convert_bad(tmp_path, "was in an earlier file already")
    (folder / "pytorch_model.bin.index.json").write_text("[]")
    convert_bad(tmp_path, "not an index of weight files")
    (folder / "pytorch_model.bin.index.json").unlink()
    convert_bad(tmp_path, "has no weights")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    convert_bad(tmp_path, "model.safetensors is damaged")
    (folder / "tokenizer.model").unlink()
    convert_bad(tmp_path, "tokenizer.model cannot be read")
    (folder / "config.json").write_text("{")
    convert_bad(tmp_path, "config.json: damaged or cut off, not JSON")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil_was_here",))


def test_foreign_objects_are_not_built(tmp_path, small_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "published"
    write_published(folder, small_model, shards=1)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    convert_bad(tmp_path, "holds more than weights")
    assert not (tmp_path / "evil_was_here").exists()
    torch.save([1], folder / "pytorch_model.bin")
    convert_bad(tmp_path, "holds a list")
    torch.save({"x": 1}, folder / "pytorch_model.bin")
    convert_bad(tmp_path, "'x' is a int")
    state = random_weights(CONFIG)
    state["transformer.output_layer.weight"] = state["transformer.output_layer.weight"].to(torch.int8)
    torch.save(state, folder / "pytorch_model.bin")
    convert_bad(tmp_path, "is torch.int8; quantised weights")


def test_a_refused_write_leaves_nothing(tmp_path, small_model):
    """A file-size limit makes the kernel refuse the second shard, as a full disk does; the first is gone too."""
    write_published(tmp_path / "published", small_model, {"ffn_hidden_size": 4000})
    (tmp_path / "out").mkdir()
    with file_size_limit(200_000), pytest.raises(UserError, match="out/model: File too large"):
        convert_chatglm3(tmp_path / "published", tmp_path / "out" / "model", 150_000)
    assert not list((tmp_path / "out").iterdir())


MEASURED_CONVERSION = """
import sys
from pathlib import Path
from llm_mer.backbones.convert.chatglm3 import convert_chatglm3

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))

convert_chatglm3(Path(sys.argv[1]), Path(sys.argv[2]))  # a small one first: imports and buffers are there once
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest mark falls to what is held now
convert_chatglm3(Path(sys.argv[3]), Path(sys.argv[4]), max_shard_bytes=int(sys.argv[5]))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs the kernel's high-water mark of memory")
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_converting_many_shards_takes_memory_for_less_than_two(tmp_path, small_model, layout):
    write_published(tmp_path / "small", small_model)
    config = {"hidden_size": 512, "ffn_hidden_size": 2048, "num_layers": 9, "kv_channels": 64}
    write_published(tmp_path / "published", small_model, config, layout=layout, shards=5)
    sizes = [path.stat().st_size for path in (tmp_path / "published").glob(f"*.{layout}")]
    assert sum(sizes) > 4 * max(sizes)
    names = ("small", "small-converted", "published", "converted")
    # The published files have up to 1.83 GB, those written by default 1 GiB: the same proportion here.
    written = str(int(0.6 * max(sizes)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED_CONVERSION, *(str(tmp_path / name) for name in names), written],
        capture_output=True, text=True, timeout=300, check=False,
        # glibc gives freed blocks back at once above 32 MB, as nearly all of the published weights are; these are smaller.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) > 4
    assert int(done.stdout) < 2 * max(sizes)
