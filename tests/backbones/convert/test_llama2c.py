"""The llama2.c converter against the format's own definition, on a really pretrained model and on made-up ones."""

import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from file_limit import file_size_limit
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llm_mer.backbones.convert.llama2c import convert_llama2c, load_tokenizer
from llm_mer.backbones.loading import load_backbone
from llm_mer.errors import UserError
from llm_mer.storage.atomic_files import new_folder

SHARED = Path(os.environ.get("LLM_MER_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
STORIES = SHARED / "stories260k" / "stories260K.bin"
TOKENIZER = SHARED / "stories260k" / "tok512.model"
needs_stories = pytest.mark.skipif(not STORIES.is_file(), reason=f"{STORIES} is not on this machine")

# What llama2.c itself prints for this model at temperature 0 in 200 steps (its test_all.py).
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was "
    "sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily was sad and "
    "didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to help her mom, so"
)


def read_file(path):
    """The file by run.c's ``memory_map_weights``: the seven numbers and its arrays in float64, nothing shared with ours."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("<7i", raw[:28])
    shared, vocabulary = vocabulary > 0, abs(vocabulary)
    size = dim // heads
    data, at = np.frombuffer(raw, "<f4", offset=28).astype(np.float64), 0

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return data[at - int(np.prod(shape)) : at].reshape(shape)

    w = {"embedding": take(vocabulary, dim), "att": take(layers, dim), "q": take(layers, heads * size, dim)}
    w |= {"k": take(layers, kv_heads * size, dim), "v": take(layers, kv_heads * size, dim)}
    w |= {"o": take(layers, dim, heads * size), "ffn": take(layers, dim)}
    w |= {"w1": take(layers, hidden, dim), "w2": take(layers, dim, hidden), "w3": take(layers, hidden, dim)}
    w |= {"final": take(dim)}
    take(length, size // 2), take(length, size // 2)
    w["head"] = w["embedding"] if shared else take(vocabulary, dim)
    assert at == len(data)
    return (layers, heads, kv_heads, size), w


def reference_logits(path, tokens):
    """run.c's ``forward`` over a sequence, float64: pairs (2i, 2i+1) of a head turn by t · 10000^(-2i/size)."""
    (layers, heads, kv_heads, size), w = read_file(path)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    angle = np.arange(len(tokens))[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)

    def turn(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    x = w["embedding"][tokens]
    future = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for i in range(layers):
        h = norm(x, w["att"][i])
        q = turn((h @ w["q"][i].T).reshape(len(tokens), heads, size))
        k = turn((h @ w["k"][i].T).reshape(len(tokens), kv_heads, size))
        v = (h @ w["v"][i].T).reshape(len(tokens), kv_heads, size)
        out = np.zeros_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            score = q[:, head] @ k[:, group].T / np.sqrt(size) + future
            score = np.exp(score - score.max(-1, keepdims=True))
            out[:, head] = score / score.sum(-1, keepdims=True) @ v[:, group]
        x = x + out.reshape(len(tokens), -1) @ w["o"][i].T
        h = norm(x, w["ffn"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["final"]) @ w["head"].T


def write_checkpoint(path, tied=True, vocabulary=270, heads=4, kv_heads=2, size=6, hidden=20, layers=2, length=16, cut=0):
    dim = heads * size
    kv = kv_heads * size
    count = vocabulary * dim * (1 if tied else 2) + dim + length * size
    count += layers * (2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim)
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocabulary if tied else -vocabulary, length)
    weights = np.random.default_rng(0).normal(size=count).astype("<f4") * 0.3
    raw = header + weights.tobytes()
    path.write_bytes(raw[: len(raw) - cut])
    return path


def pieces(size=270):
    """A small vocabulary with bytes: (text, score) as in tokenizer.bin."""
    rows = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    words = [" ", "a", "b", "c", "ab", " a", "abc", "bc", "bca", " ab", "aa"]
    return [*rows, *((word, -float(i)) for i, word in enumerate(words))][:size]


def write_tokenizer_bin(path, rows):
    raw = struct.pack("<i", max(len(text.encode()) for text, _ in rows))
    for text, score in rows:
        raw += struct.pack("<fi", score, len(text.encode())) + text.encode()
    path.write_bytes(raw)
    return path


def run_c_encode(text, rows):
    """run.c's ``encode`` without the begin token: characters or bytes, then the best-scored neighbours, leftmost first."""
    table = {piece: i for i, (piece, _) in enumerate(rows)}
    ids = []
    for character in [" ", *text] if text else []:
        ids += [table[character]] if character in table else [byte + 3 for byte in character.encode()]
    while True:
        best = None
        for i in range(len(ids) - 1):
            merged = table.get(rows[ids[i]][0] + rows[ids[i + 1]][0])
            if merged is not None and (best is None or rows[merged][1] > best[0]):
                best = (rows[merged][1], i, merged)
        if best is None:
            return ids
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return convert_llama2c(STORIES, tmp_path_factory.mktemp("stories") / "model")


@needs_stories
def test_stories_logits_equal_the_reference(stories):
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    assert isinstance(model, LlamaForCausalLM)
    tokens = [1, *random.Random(0).choices(range(512), k=199)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double().numpy()
    expected = reference_logits(STORIES, tokens)
    assert np.abs(logits - expected).max() < 1e-3
    assert expected.std() > 1


@needs_stories
def test_stories_tells_the_documented_story(stories):
    backbone = load_backbone(stories)
    bos = torch.tensor([[backbone.tokenizer.bos_token_id]])
    tokens = backbone.model.generate(bos, attention_mask=torch.ones_like(bos), max_new_tokens=200, do_sample=False)
    assert backbone.tokenizer.decode(tokens[0], skip_special_tokens=True).startswith(STORY)


@needs_stories
def test_stories_tokenizer_equals_sentencepiece_and_round_trips(stories):
    tokenizer = load_backbone(stories).tokenizer
    reference = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    generator = random.Random(0)
    alphabet = [reference.id_to_piece(i).replace("▁", " ") for i in range(259, 512)] + [
        " ",
        "  ",
        "\n",
        "é",
        "你",
        "😀",
        "▁",
    ]
    for _ in range(2000):
        text = "".join(generator.choices(alphabet, k=generator.randint(0, 30)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids), text
    for text in (STORY, "Tom said: 你好 😀, é!", "a\n\nb"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_of_any_grouping_tied_or_not(tmp_path, tied, kv_heads):
    source = write_checkpoint(tmp_path / "m.bin", tied=tied, kv_heads=kv_heads)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", pieces())
    target = convert_llama2c(source, tmp_path / "deep" / "out")
    model, info = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = [1, 200, 3, 269, 17, 17, 5]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([tokens])).logits[0].double().numpy()
    np.testing.assert_allclose(logits, reference_logits(source, tokens), atol=1e-3)
    assert model.config.tie_word_embeddings is tied
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]


def test_tokenizer_bin_equals_run_c(tmp_path):
    rows = pieces()
    tokenizer = load_tokenizer(write_tokenizer_bin(tmp_path / "tokenizer.bin", rows), len(rows))
    generator = random.Random(1)
    for _ in range(2000):
        text = "".join(generator.choices("aaabbc  é\n", k=generator.randint(0, 12)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == run_c_encode(text, rows), text
        assert tokenizer.decode(ids) == text
    assert tokenizer("")["input_ids"] == [1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@needs_stories
def test_tokenizer_bin_and_model_agree(tmp_path):
    """The export of llama2.c's tokenizer.py, written here, gives the same ids where spaces are single."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    rows = [(reference.id_to_piece(i).replace("▁", " "), reference.get_score(i)) for i in range(512)]
    rows[1:3] = [("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    tokenizer = load_tokenizer(write_tokenizer_bin(tmp_path / "tok512.bin", rows), 512)
    assert tokenizer(STORY, add_special_tokens=False)["input_ids"] == reference.encode(STORY)


def convert_bad(tmp_path, message, **arguments):
    """Conversion is refused with this message and leaves nothing behind."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message):
        convert_llama2c(arguments.pop("source", tmp_path / "m.bin"), out / "model", **arguments)
    assert not list(out.iterdir())


def test_broken_checkpoints_are_refused(tmp_path):
    write_tokenizer_bin(tmp_path / "tokenizer.bin", pieces())
    convert_bad(tmp_path, "cannot be read")
    write_checkpoint(tmp_path / "m.bin", cut=4)
    convert_bad(tmp_path, r"has \d+ bytes, but its header .* asks for \d+")
    (tmp_path / "m.bin").write_bytes(b"short")
    convert_bad(tmp_path, "has 5 bytes")
    (tmp_path / "m.bin").write_bytes(struct.pack("<7i", 0x616B3432, 1, 0, 0, 0, 0, 0))
    convert_bad(tmp_path, "of version 1; .*--version 0")
    (tmp_path / "m.bin").write_bytes(struct.pack("<7i", 64, 172, 5, 7, 4, 512, 512))
    convert_bad(tmp_path, "its header would say dim 64")
    write_checkpoint(tmp_path / "m.bin", size=3)
    convert_bad(tmp_path, "odd size 3")


def test_foreign_tokenizers_are_refused(tmp_path):
    write_checkpoint(tmp_path / "m.bin")
    convert_bad(tmp_path, "no tokenizer beside it .tok270.model, tok270.bin, tokenizer.model, tokenizer.bin")
    path = tmp_path / "t.bin"
    convert_bad(tmp_path, "cannot be read", tokenizer=path)
    write_tokenizer_bin(path, pieces(269))
    convert_bad(tmp_path, "has 269 pieces, the checkpoint's vocabulary 270", tokenizer=path)
    raw = write_tokenizer_bin(path, pieces()).read_bytes()
    path.write_bytes(raw[:-1])
    convert_bad(tmp_path, "not a llama2.c tokenizer.bin", tokenizer=path)
    write_tokenizer_bin(path, [("a", 0.0), *pieces()[1:]])
    convert_bad(tmp_path, "ids 0, 1, 2 are", tokenizer=path)
    write_tokenizer_bin(path, [*pieces()[:-1], ("aé", -99.0)])
    convert_bad(tmp_path, "uses 'é', which is no piece itself", tokenizer=path)
    model = tmp_path / "t.model"
    model.write_bytes(b"\xff\xff\xff not a model")
    convert_bad(tmp_path, "not a SentencePiece model", tokenizer=model)
    for options, message in (
        ({"model_type": "unigram", "normalization_rule_name": "identity"}, "UNIGRAM model"),
        ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, "normalises characters"),
        ({"model_type": "bpe", "normalization_rule_name": "identity", "user_defined_symbols": ["xx"]}, "user-defined"),
    ):
        lines = iter(["the cat sat on the mat"] * 20)
        with model.open("wb") as stream:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=lines, model_writer=stream, vocab_size=270, byte_fallback=True,
                hard_vocab_limit=False, num_threads=1, minloglevel=2, **options,
            )  # fmt: skip
        size = sentencepiece.SentencePieceProcessor(model_file=str(model)).get_piece_size()
        write_checkpoint(tmp_path / "m.bin", vocabulary=size)
        convert_bad(tmp_path, message, tokenizer=model)


def test_a_taken_target_is_kept(tmp_path):
    write_checkpoint(tmp_path / "m.bin")
    write_tokenizer_bin(tmp_path / "tokenizer.bin", pieces())
    (tmp_path / "out").mkdir()
    convert_llama2c(tmp_path / "m.bin", tmp_path / "out")  # an empty folder will do
    before = json.loads((tmp_path / "out" / "config.json").read_text())
    with pytest.raises(UserError, match="exists already"):
        convert_llama2c(tmp_path / "m.bin", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before
    with pytest.raises(UserError, match="free on that disk"), new_folder(tmp_path / "huge", 1 << 70):
        pass


def test_a_refused_write_leaves_nothing(tmp_path):
    """A file-size limit makes the kernel refuse the weights midway, as a full disk does."""
    write_checkpoint(tmp_path / "m.bin", hidden=4000)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", pieces())
    (tmp_path / "out").mkdir()
    with file_size_limit(200_000), pytest.raises(UserError, match="out/model: File too large"):
        convert_llama2c(tmp_path / "m.bin", tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())
