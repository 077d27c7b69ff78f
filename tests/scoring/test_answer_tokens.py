"""An answer is one token path in every vocabulary: the same in training, scoring and generation, whatever is before it.

The traps are those of real vocabularies: SentencePiece's dummy prefix (a space token before an answer that has none),
digits written one by one or in groups of three, byte fallback, and merges over the seam (``:joy`` and ``：高兴`` are single
tokens to byte-level vocabularies), which tokenising prompt and answer together would fall into.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import os
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import AUDIO_SIZE, ROOT, build_tokenizer, make_utterances
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_mer.backbones.loading import read_tokenizer
from llm_mer.backbones.tiny_text import generate_lines
from llm_mer.data.dataset import MerDataset, Question
from llm_mer.inference.predictor import Predictor
from llm_mer.model.collator import MerCollator
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import Task, builtin_tasks
from llm_mer.prompting.templates import load_prompts
from llm_mer.scoring.engines.base import MAX_ANSWER_TOKENS
from llm_mer.scoring.engines.transformers_engine import TransformersEngine

SHARED = Path(os.environ.get("LLM_MER_SHARED_DATA", ROOT.parent / "shared" / "data"))
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPLIT = CONTRACTIONS + r"\p{N}" + REST
LLAMA3_SPLIT = CONTRACTIONS + r"\p{N}{1,3}" + REST
"""How the published Qwen2/Qwen3 and Llama-3/GLM-4 tokenizers cut text before merging: digits alone, or up to three."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)


def training_lines() -> list[str]:
    """Generated text in which label words and numbers also stand where prompts put answers."""
    lines = [line for text in generate_lines(0, 500) for line in text.split("\n")]
    for task in builtin_tasks().values():
        for label in task.labels:
            lines += [f"Emotion:{label.words['en']}", f"情绪：{label.words['zh']}", f"is {label.words['en']}"] * 8
        if task.kind == "regression":
            lines += [f"Sentiment:{answer}" for answer in task.answers("en", "number")] * 4
    return lines + [f"{i} = x" for i in range(300)] * 3


def byte_level(split: str, special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 3000 tokens with a published way of cutting text."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(training_lines(), trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if options.get("bos_token"):
        bos = options["bos_token"]
        place = (bos, backend.token_to_id(bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[place])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def published_qwen() -> PreTrainedTokenizerFast:
    """Qwen's published vocabulary, which the ``dashscope`` package carries as byte strings in order of their merging."""
    package = importlib.util.find_spec("dashscope")
    assert package is not None
    assert package.origin is not None
    rows = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().split()
    ranks = {base64.b64decode(token): int(rank) for token, rank in zip(rows[::2], rows[1::2], strict=True)}
    letters = bytes_to_letters()
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # what the tokens before this one leave of it are the two halves that it merges
            pairs = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            assert pairs[best] < rank
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((letters(parts[0]), letters(parts[1])))
    backend = Tokenizer(models.BPE(vocab={letters(token): rank for token, rank in ranks.items()}, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    assert backend.encode("hello world").ids == [14990, 1879]  # the ids known of Qwen
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def bytes_to_letters() -> Any:
    """The byte-level form's own writing of bytes as letters, asked of ``tokenizers`` byte by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    return lambda data: "".join(table[b] for b in data)


def load(name: str) -> Any:
    if name == "tiny":
        return build_tokenizer()
    if name == "qwen split":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        return byte_level(QWEN_SPLIT, special, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)
    if name == "llama-3 split":  # no pad and no unknown token: the end token pads
        special = ["<|begin_of_text|>", "<|start|>", "<|stop|>", "<|eot_id|>"]
        return byte_level(
            LLAMA3_SPLIT,
            special,
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<|eot_id|>",
            chat_template=HEADERS,
        )
    if name == "qwen":
        if importlib.util.find_spec("dashscope") is None:
            pytest.skip("the dashscope package, which carries Qwen's vocabulary, is not installed")
        return published_qwen()
    place = {"chatglm3": "tokenizers/chatglm3", "llama-2": "tokenizers/llama2", "stories260k": "stories260k"}[name]
    if not (SHARED / place).is_dir():
        pytest.skip(f"shared/data/{place} is not on this machine")
    if name == "chatglm3":
        from llm_mer.backbones.convert.chatglm3 import load_tokenizer

        return load_tokenizer(SHARED / place / "tokenizer.model", 65024)
    if name == "stories260k":
        from llm_mer.backbones.convert.llama2c import load_tokenizer as load_llama2c

        return load_llama2c(SHARED / place / "tok512.model", 512)
    raise KeyError(name)


@cache
def llama2(folder: Path) -> Any:
    """The published file as ``read_tokenizer`` sees it in a Llama-2 folder."""
    shutil.copyfile(SHARED / "tokenizers" / "llama2" / "tokenizer.model", folder / "tokenizer.model")
    entry = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**entry, "unk_token": "<unk>", "legacy": False}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = read_tokenizer(folder)
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


VOCABULARIES = ["chatglm3", "llama-2", "stories260k", "qwen", "qwen split", "llama-3 split", "tiny"]


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "llama-2":
        if not (SHARED / "tokenizers" / "llama2").is_dir():
            pytest.skip("shared/data/tokenizers/llama2 is not on this machine")
        return llama2(tmp_path_factory.mktemp("llama2"))
    return load(request.param)


def processor(vocabulary: Any, prompts: str, chat: str = "auto", tasks: list[Task] | None = None) -> MerProcessor:
    return MerProcessor(
        tokenizer=vocabulary,
        tasks=tasks or list(builtin_tasks().values()),
        prompts=load_prompts(prompts),
        feature_sizes={"audio": AUDIO_SIZE},
        statistics={},
        num_pseudo_tokens=2,
        chat=chat,
    )


def questions_of(processor: MerProcessor) -> list[tuple[Task, str]]:
    """Tasks and languages that the loaded prompts can ask about."""
    kinds = {(p.kind, p.language) for p in processor.prompts}
    return [(t, language) for t in processor.tasks for language in ("en", "zh") if (t.kind, language) in kinds]


FINE = Task(name="fine", kind="regression", target="sentiment", score_range=(-2.0, 2.0), decimals=3)


@pytest.mark.parametrize("prompts", ["instruct", "index"])
def test_every_answer_is_a_path_of_its_own_that_ends_where_no_other_goes_on(vocabulary: Any, prompts: str) -> None:
    made = processor(vocabulary, prompts, tasks=[*builtin_tasks().values(), FINE])
    end = made.end_token_id
    asked = questions_of(made)
    assert asked
    for task, language in asked:
        paths = [tuple(path) for path in made.answers(task, language)]
        assert all(paths)
        assert end not in {token for path in paths for token in path}
        assert vocabulary.unk_token_id is None or not any(vocabulary.unk_token_id in path for path in paths)
        whole = {(*path, end) for path in paths}
        assert len(whole) == len(task.answers(language, made.answer_style(task, language)))
        beginnings = {path[:n] for path in whole for n in range(1, len(path))}
        assert not whole & beginnings


@pytest.mark.parametrize("prompts", ["instruct", "index"])
def test_what_is_generated_along_a_path_reads_back_as_its_answer(vocabulary: Any, prompts: str) -> None:
    made = processor(vocabulary, prompts, tasks=[*builtin_tasks().values(), FINE])
    for task, language in questions_of(made):
        style = made.answer_style(task, language)
        texts, paths = task.answers(language, style), made.answers(task, language)
        assert max(map(len, paths)) < MAX_ANSWER_TOKENS
        longest = max(map(len, paths)) + 1
        rows = torch.tensor([[*p, made.end_token_id, *[made.filler_id] * (longest - 1 - len(p))] for p in paths])
        prompts_asked = [made.encode_prompt(task, language, "hello", [])] * len(paths)
        model = SimpleNamespace(generate=lambda rows=rows, **_: rows, parameters=lambda: iter([torch.zeros(1)]))
        engine = TransformersEngine(model)
        generated = Predictor._generate(SimpleNamespace(processor=made, answering=engine), prompts_asked, {})  # type: ignore[arg-type]
        assert generated == list(texts)
        expected = list(range(task.num_classes)) if task.kind == "classification" else list(task.grid())
        assert [task.parse(text, language, style) for text in generated] == expected


@pytest.mark.parametrize("chat", ["auto", "never"])
@pytest.mark.parametrize("prompts", ["instruct", "index"])
def test_training_rows_are_the_prompt_asked_at_inference_and_the_path_that_is_scored(
    vocabulary: Any, prompts: str, chat: str
) -> None:
    made = processor(vocabulary, prompts, chat)
    utterances = [dataclasses.replace(u, labels={}) for u in make_utterances("train", 2, dialogues=False)]
    for task, language in questions_of(made):
        truths: list[Any] = list(task.label_names) if task.kind == "classification" else list(task.grid())[::6]
        known = dict(zip(task.label_names or task.grid(), made.answers(task, language), strict=True))
        dataset = MerDataset([u for u in utterances if u.language == language], [task], require_truth=False)
        collator = MerCollator(dataset, made)
        asked = collator.batch([Question(0, task, None)], with_answer=False)
        rows = collator.batch([Question(0, task, truth) for truth in truths], with_answer=True)
        assert asked.input_ids is not None
        assert rows.labels is not None
        assert rows.input_ids is not None
        prompt = asked.input_ids[0].tolist()
        for ids, labels, truth in zip(rows.input_ids.tolist(), rows.labels.tolist(), truths, strict=True):
            path = [*known[truth], made.end_token_id]
            assert ids[: len(prompt) + len(path)] == prompt + path
            assert [i for i, label in enumerate(labels) if label != -100] == list(
                range(len(prompt), len(prompt) + len(path))
            )
            assert labels[len(prompt) : len(prompt) + len(path)] == path  # the end token too, where it is the pad token


@pytest.mark.parametrize(("prompt", "answer"), [("Emotion:", "joy"), ("情绪：", "高兴")])
def test_byte_level_vocabularies_merge_over_the_seam_and_the_processor_does_not(prompt: str, answer: str) -> None:
    for name in ("qwen split", "llama-3 split"):
        made = processor(load(name), "short", "never")
        together, apart = made.encode(prompt + answer), made.encode(prompt) + made.encode(answer)
        assert together != apart  # the trap is there
        ids = made.encode_prompt(made.tasks[0], "en" if answer == "joy" else "zh", "x", []).ids
        assert ids[-len(made.encode(prompt)) :] == made.encode(prompt)


def test_digits_go_one_by_one_or_in_groups_of_up_to_three() -> None:
    alone, grouped = load("qwen split"), load("llama-3 split")
    for text, tokens in (("12", 1), ("123", 1), ("1234", 2), ("-1.25", 4)):
        assert len(grouped(text, add_special_tokens=False)["input_ids"]) == tokens
        assert len(alone(text, add_special_tokens=False)["input_ids"]) == len(text)


@pytest.mark.parametrize("name", ["chatglm3", "llama2"])
def test_answers_of_sentencepiece_vocabularies_are_what_sentencepiece_writes(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import sentencepiece

    file = SHARED / "tokenizers" / name / "tokenizer.model"
    if not file.is_file():
        pytest.skip(f"{file} is not on this machine")
    tokenizer = load("chatglm3") if name == "chatglm3" else llama2(tmp_path_factory.mktemp("llama2"))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    spaced = 0
    for prompts in ("instruct", "index"):
        made = processor(tokenizer, prompts, tasks=[*builtin_tasks().values(), FINE])
        for task, language in questions_of(made):
            texts = task.answers(language, made.answer_style(task, language))
            for text, path in zip(texts, made.answers(task, language), strict=True):
                assert path == reference.encode(text)
                assert tokenizer.decode(path).strip() == text == reference.decode(path)
                spaced += reference.id_to_piece(path[0]) == "▁"
    assert spaced  # the dummy prefix is a token of its own before some answers, and so it is everywhere
