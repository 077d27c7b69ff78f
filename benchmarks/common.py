"""What the benchmarks share: models and batches of a stated size, alternating timers, and the report they write."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llm_mer.adapters import adapter_class
from llm_mer.model.configuration_mer import MerConfig, build_adapter_config
from llm_mer.model.modeling_mer import FUSION_KEYS, MerForConditionalGeneration
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.prompt_layout import TaskPrompts

RESULTS = Path(__file__).resolve().parent / "results"
PSEUDO_TOKENS, PSEUDO_START = 4, 3
FEATURES: dict[str, tuple[int, int]] = {"audio": (50, 25), "vision": (24, 396)}
"""Steps and size of ``egemaps`` and ``hog_flow`` for a clip of 4 s at the default rates."""
TRANSCRIPT, ANSWER, CLASSES, WINDOW = 24, 3, 6, 8


@dataclass(frozen=True)
class Size:
    """A randomly initialised Llama."""

    layers: int = 6
    hidden: int = 256
    vocabulary: int = 32_000

    def __str__(self) -> str:
        return f"{self.layers} × {self.hidden}"


def backbone(size: Size) -> LlamaForCausalLM:
    """The frozen backbone, float32, weights drawn wide enough that outputs are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return model


def mer_model(
    llama: LlamaForCausalLM, adapter: str = "egmf", pseudo_tokens: int = PSEUDO_TOKENS
) -> MerForConditionalGeneration:
    """The backbone with a fusion adapter of default options, as ``training.model_builder.build_model`` makes it."""
    hidden = int(llama.config.hidden_size)
    sizes = {"text": hidden, **{name: width for name, (_, width) in FEATURES.items()}}
    options = {
        "num_pseudo_tokens": pseudo_tokens,
        "feature_sizes": sizes,
        "context_sizes": {"text": hidden, **{name: 2 * width for name, (_, width) in FEATURES.items()}},
        "backbone_size": hidden,
        "num_classes": CLASSES,
        "score_range": (-3.0, 3.0),
    }
    config = MerConfig(
        text_config=llama.config, adapter=adapter, adapter_config=asdict(build_adapter_config(adapter, options))
    )
    return MerForConditionalGeneration.from_backbone(llama, config)


def mer_batch(
    size: Size,
    rows: int,
    tokens: int,
    adapter: str = "egmf",
    answer: bool = True,
    pseudo_tokens: int = PSEUDO_TOKENS,
) -> dict[str, Tensor]:
    """Random inputs of ``tokens`` positions a row, pseudo tokens and answer included, nothing padded."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> Tensor:
        return torch.randint(3, size.vocabulary, (rows, length), generator=generator)

    batch = {
        "input_ids": ids(tokens),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "pseudo_token_mask": torch.zeros(rows, tokens, dtype=torch.bool),
        "text_ids": ids(TRANSCRIPT),
        "text_mask": torch.ones(rows, TRANSCRIPT, dtype=torch.bool),
    }
    batch["pseudo_token_mask"][:, PSEUDO_START : PSEUDO_START + pseudo_tokens] = True
    for name, (steps, width) in FEATURES.items():
        batch[f"{name}_features"] = torch.randn(rows, steps, width, generator=generator)
        batch[f"{name}_mask"] = torch.ones(rows, steps, dtype=torch.bool)
    if adapter_class(adapter).uses_context:
        full = torch.ones(rows, WINDOW, dtype=torch.bool)
        batch |= {"context_mask": full, "context_target": torch.full((rows,), WINDOW - 1)}
        batch["context_speakers"] = (torch.arange(WINDOW) + 1).remainder(2).expand(rows, WINDOW)
        for name, width in {"text": size.hidden, **{m: 2 * w for m, (_, w) in FEATURES.items()}}.items():
            batch[f"context_{name}"] = torch.randn(rows, WINDOW, width, generator=generator)
            batch[f"context_{name}_mask"] = full
    if answer:
        batch["labels"] = torch.full((rows, tokens), -100)
        batch["labels"][:, -ANSWER:] = batch["input_ids"][:, -ANSWER:]
        batch["class_targets"] = torch.randint(CLASSES, (rows,), generator=generator)
        batch["score_targets"] = torch.rand(rows, generator=generator) * 6 - 3
    return batch


def answer_prompts(
    batch: dict[str, Tensor], answers: Sequence[Sequence[int]], end: int | None
) -> tuple[TaskPrompts, dict[str, Any]]:
    """The prompts of :func:`mer_batch` as a scorer takes them, with their answers, and what else the model reads."""
    starts = batch["pseudo_token_mask"].int().argmax(dim=1).tolist()
    counts = batch["pseudo_token_mask"].sum(dim=1).tolist()
    rows = zip(batch["input_ids"].tolist(), starts, counts, strict=True)
    prompts = [PromptIds(ids, start, count) for ids, start, count in rows]
    given = {name: value for name, value in batch.items() if name in FUSION_KEYS}
    return TaskPrompts(prompts, AnswerTree.build(answers, end)), given


def _send(measure: Callable[..., Any], arguments: Sequence[Any], sender: Any) -> None:
    sender.send(measure(*arguments))


def in_fork(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What ``measure`` returns in a process of its own; forked, since nothing but imports need be repeated."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(measure, arguments, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def alternate(
    sides: dict[str, Callable[[], object]], repetitions: int, warmup: int = 1, twice: bool = False
) -> dict[str, list[float]]:
    """CPU seconds of each side, taken in turn: ``{name: [seconds]}``.

    With ``twice`` a side runs once more, untimed, just before: else it pays for the memory that a larger one before it gave
    back to the system, and for caches that this one filled.

    Processor time of this process, not wall time: with one thread the two agree on an idle machine, and waiting for a
    core that other work holds does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repetitions):
        for name, work in sides.items():
            if twice:
                work()
            began = time.process_time()
            work()
            if turn >= warmup:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median of the ratios within each turn: what both shared of the machine's load divides out."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, in milliseconds."""
    return f"{1000 * statistics.median(seconds):.0f}"


def options(question: str) -> argparse.ArgumentParser:
    """``--quick`` and ``--threads``, with the script's own question as the help text."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run under 20 s; prints, and writes no result")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; waiting for a second one would count")
    return parser


def machine() -> str:
    """Cores, processor, memory and versions; nothing that names the host."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "transformers", "peft", "datasets", "numpy")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({cpu}, shared with other work), {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def report(name: str, question: str, head: Sequence[str], rows: Sequence[Sequence[Any]], notes: str, quick: bool) -> None:
    """Print one Markdown table; a full run also writes it to ``benchmarks/results/<name>.md``."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in (head, ["---"] * len(head), *rows)]
    table = "\n".join(lines)
    print(table, flush=True)
    if notes:
        print(f"\n{notes}")
    if quick:
        return
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    text = f"# {name}\n\n{question.strip()}\n\n{table}\n\n{notes}\n\n- Command: `{command}`\n- Machine: {machine()}\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
