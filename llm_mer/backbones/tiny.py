"""Tiny bilingual language models that train in a minute: the frozen backbones of the quickstart and the tests."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_mer.backbones.tiny_options import TinyBackboneConfig, cache_folder
from llm_mer.backbones.tiny_text import GENERATOR_VERSION, builtin_label_sets, generate_lines
from llm_mer.distributed.progress import track_progress
from llm_mer.errors import UserError, first_line
from llm_mer.storage.atomic_files import replaced_folder
from llm_mer.storage.fingerprints import json_sha256
from llm_mer.storage.json_files import read_json_object
from llm_mer.storage.mount_points import refuse_mount_point

DESCRIPTION_FILE = "tiny_backbone.json"
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass
class PerplexityReport:
    """Perplexity per token on held-out text: of the model, and of a unigram model for comparison."""

    perplexity: float
    unigram_perplexity: float


def cache_key(config: TinyBackboneConfig) -> str:
    """Folder name in the cache; it changes with any option and with :data:`GENERATOR_VERSION`."""
    entry = {**asdict(config), "output": None, "text": GENERATOR_VERSION}
    return f"{config.architecture}-{json_sha256(entry, sort_keys=True, ensure_ascii=True)[:12]}"


def train_tokenizer(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a SentencePiece unigram tokenizer (case-folded, digits split, byte fallback), as a fast tokenizer.

    Every label word of the built-in tasks is in its training text, so none is encoded as bytes.
    """
    import sentencepiece

    words = [word for labels in builtin_label_sets() for label in labels for word in label.words.values()]
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([*(part for text in lines for part in text.split("\n")), *words * 20]),
            model_writer=buffer,
            vocab_size=vocabulary,
            model_type="unigram",
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            user_defined_symbols=["\n"],
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_piece=UNK,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:  # how it says that there are more letters than pieces, or fewer words than pieces
        raise UserError(
            f"vocabulary {vocabulary}: SentencePiece makes no such one of this text: {first_line(error).rpartition('] ')[2]}"
        ) from None
    return tokenizer_from_sentencepiece(buffer.getvalue())


def tokenizer_from_sentencepiece(model: bytes) -> PreTrainedTokenizerFast:
    """Convert a serialised SentencePiece unigram model into a fast tokenizer with the same ids."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at run time
    proto.ParseFromString(model)
    sentencepiece.SentencePieceProcessor(model_proto=model)  # refuses a damaged model
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    symbols = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(symbol, normalized=False, special=False) for symbol in symbols])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, BOS, EOS, UNK)])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK, padding_side="left"
    )


def build_untrained_model(config: TinyBackboneConfig, vocabulary: int) -> PreTrainedModel:
    """An untrained model of the named architecture."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 8 // 3,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": max(config.heads // 2, 1),
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    head_dim = config.hidden_size // config.heads
    if config.architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=True))
    if config.architecture == "glm":
        return GlmForCausalLM(GlmConfig(**common, head_dim=head_dim, tie_word_embeddings=False))
    if config.architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True))
    raise UserError(f"architecture: {config.architecture!r} is not one of llama, glm, qwen2")


def train_tiny_backbone(config: TinyBackboneConfig, cache: Path | None = None, progress: bool = True) -> Path:
    """Train a tiny backbone unless its folder exists already; returns the folder.

    The same configuration, number of threads and library versions give the same weights. The folder is written completely
    or not at all.

    Raises:
        UserError: ``output`` holds other files, or an unknown architecture.
    """
    folder = Path(config.output) if config.output else (cache or cache_folder()) / cache_key(config)
    description = folder / DESCRIPTION_FILE
    expected = {**asdict(config), "output": None, "text": GENERATOR_VERSION}
    if description.is_file() and read_json_object(description).get("config") == expected:
        return folder
    if folder.exists() and any(folder.iterdir()) and not description.is_file():
        raise UserError(f"{folder} exists and is no tiny backbone; name another output")
    refuse_mount_point(folder)
    lines = list(generate_lines(config.seed, config.lines))
    held_out = list(generate_lines(config.seed + 1, 600))
    tokenizer = train_tokenizer(lines, config.vocabulary)
    rows = pack_into_rows(tokenizer, lines, config.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = train_model(config, len(tokenizer), rows, progress)
    report = evaluate_tiny(model, rows, pack_into_rows(tokenizer, held_out, config.length))
    entry = {"config": expected, "report": asdict(report)}
    with replaced_folder(folder, is_backbone_file) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / DESCRIPTION_FILE).write_text(json.dumps(entry, indent=1), encoding="utf-8")
    return folder


def is_backbone_file(name: str) -> bool:
    """Whether :func:`train_tiny_backbone` writes a file of this name."""
    known = ("config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json", DESCRIPTION_FILE)
    return name in known or name.startswith("tokenizer")


def pack_into_rows(tokenizer: PreTrainedTokenizerFast, lines: list[str], length: int) -> Tensor:
    """Token ids of all lines, each with its begin and end token, concatenated and cut into rows: ``(N, length)``."""
    eos = int(tokenizer.eos_token_id)
    stream = [token for ids in tokenizer(lines)["input_ids"] for token in (*ids, eos)]
    count = len(stream) // length
    return torch.tensor(stream[: count * length]).view(count, length)


def train_model(config: TinyBackboneConfig, vocabulary: int, rows: Tensor, progress: bool) -> PreTrainedModel:
    """Train on random rows with AdamW, linear warm-up and cosine decay."""
    model = build_untrained_model(config, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = max(config.steps // 10, 1)

    def learning_rate_factor(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / config.steps)) + 0.02)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    model.train()
    steps = track_progress(
        range(config.steps), description=f"train tiny {config.architecture}", unit="step", hidden=not progress
    )
    for _ in steps:
        batch = rows[torch.randint(len(rows), (config.batch_size,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        steps.set_postfix(loss=f"{loss.item():.2f}")
    return model.eval()


@torch.no_grad()
def evaluate_tiny(model: PreTrainedModel, training: Tensor, held_out: Tensor) -> PerplexityReport:
    """Perplexity on held-out rows, and of a unigram model with add-one smoothing counted on the training rows."""
    losses = [float(model(input_ids=chunk, labels=chunk).loss) * len(chunk) for chunk in held_out.split(32)]
    counts = torch.bincount(training.flatten(), minlength=int(model.config.vocab_size)).double() + 1
    unigram = -(counts / counts.sum()).log()[held_out[:, 1:]].mean()
    return PerplexityReport(math.exp(sum(losses) / len(held_out)), math.exp(float(unigram)))
