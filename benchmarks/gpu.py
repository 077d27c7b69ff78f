"""How fast, and in how much memory, do backbones of the sizes people use train and answer on one GPU?

Aim: LoRA in bf16 on packed rows of 512 tokens uses at least half of what the card reaches in a bf16 matrix product.

Backbones have the shapes of ChatGLM3-6B and Llama-2-7B and random weights drawn on the card. Utilisation counts what a step
must compute, each token of a row once: forward and backward through the frozen layers (4 FLOPs a weight and token), LoRA
(6), causal attention; not the padding, the adapter, the vocabulary head or what checkpointing computes twice. It is given of
an 8192³ bf16 product measured in the same run. Questions a second are of MELD's lengths; the reference recipe is that of
``reference_recipe.py``.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from common import options, report
from reference_recipe import Setting, inference_sides, optimised, our_loss, padded, reference_loss
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from llm_mer.backbones.loading import disable_packed_nf4
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.model.collator import MerBatch
from llm_mer.model.liger_kernels import use_liger
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.training.model_builder import add_lora
from llm_mer.training.options import ModelArguments

PACKING_LENGTH = 512
PRODUCT = 8192

SHAPES: dict[str, PreTrainedConfig] = {
    "ChatGLM3-6B": GlmConfig(
        vocab_size=65024,
        hidden_size=4096,
        intermediate_size=13696,
        num_hidden_layers=28,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=8192,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        pad_token_id=0,
        eos_token_id=2,
    ),
    "Llama-2-7B": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
    ),
}
SMALL: dict[str, PreTrainedConfig] = {
    "small Glm": GlmConfig(
        vocab_size=4000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        pad_token_id=0,
        eos_token_id=2,
    ),
}


@dataclass(frozen=True)
class Way:
    """One way to train: what holds the frozen weights, how attention is computed, what is computed twice or compiled."""

    quantization: str = "none"
    attention: str = "sdpa"
    checkpointing: bool = False
    compiled: bool = False
    liger: bool = False

    def __str__(self) -> str:
        weights = "LoRA, bf16" if self.quantization == "none" else f"QLoRA, {self.quantization}"
        further = [name for name in ("checkpointing", "compiled", "liger") if getattr(self, name)]
        return ", ".join([weights, self.attention, *further])


def quantised(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The layers' weights as bitsandbytes NF4 or int8, the embedding and the head as they are."""
    import bitsandbytes as bnb

    for parent in list(model.base_model.modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear:
                continue
            size, bias = (linear.in_features, linear.out_features), linear.bias is not None
            made: Any
            if name == "nf4":
                made = bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4")
                made.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            else:
                made = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False)
                made.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
            if bias:
                made.bias = linear.bias
            made._is_hf_initialized = True  # or the model built around it would draw its weights anew
            setattr(parent, child, made.to(linear.weight.device))
    if name == "nf4":
        disable_packed_nf4(model)
    setattr(model, "is_loaded_in_4bit" if name == "nf4" else "is_loaded_in_8bit", True)
    return model


def on_card(config: PreTrainedConfig, device: torch.device, way: Way) -> PreTrainedModel:
    """A frozen backbone in bf16 with random weights, drawn where it stays."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=way.attention)
    model.eval().requires_grad_(False)
    return model if way.quantization == "none" else quantised(model, way.quantization)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> list[float]:
    """Wall seconds of each repetition, the card's work done, after two that do not count."""
    taken = []
    for turn in range(-2, repetitions):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        if turn >= 0:
            taken.append(time.perf_counter() - began)
    return taken


def product_flops(device: torch.device, size: int) -> float:
    """FLOP/s of a square bf16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b, device, 10))


def layer_weights(config: PreTrainedConfig) -> int:
    """Weights of all linear layers of the decoder, counted on a model without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = tuple(find_lora_targets(model))
    return sum(m.weight.numel() for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in names and "layers" in n)


def step_flops(config: Any, batch: MerBatch, lora: int) -> tuple[int, float]:
    """Tokens of a packed batch, and the FLOPs that a step on them must do at least."""
    assert batch.sample_ids is not None
    assert batch.position_ids is not None
    real = batch.sample_ids >= 0
    tokens = int(real.sum())
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    seen = int((batch.position_ids[real] + 1).sum())  # each place attends to its own prompt up to itself
    attention = 3 * 4 * seen * width * config.num_hidden_layers  # scores and values; twice as much backward
    return tokens, 4 * layer_weights(config) * tokens + 6 * lora * tokens + attention


def peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.type == "cuda" else ""


def free(device: torch.device) -> None:
    """Give back what the last model held, and count the peak from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def under_autocast(
    loss: Callable[[Any, dict[str, Tensor]], Tensor], device: torch.device
) -> Callable[[nn.Module, dict[str, Tensor]], Tensor]:
    """The loss as the trainer computes it with ``bf16: true``."""

    def computed(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(model, inputs)

    return computed


def training(config: PreTrainedConfig, way: Way, style: str, device: torch.device, questions: int, top: float) -> list[str]:
    """Cells of one way to train on packed rows: questions and tokens a second, utilisation, memory."""
    free(device)
    setting = Setting.around(lambda: on_card(config, device, way), config.hidden_size, max(questions, 64), style)
    setting.collator.packing_length = PACKING_LENGTH
    setting.collator.share_prefixes = way.attention != "flash_attention_2"
    model = add_lora(setting.model(), ModelArguments()).train()
    if way.checkpointing:
        conditional_generation_of(model).model.language_model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if way.liger:
        print(use_liger(model), file=sys.stderr)
    if way.compiled:
        for layer in conditional_generation_of(model).model.language_model.layers:
            layer.compile()
    batch = setting.batch(range(questions), True)
    inputs = batch.to(device).model_inputs()
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    tokens, flops = step_flops(config, batch, lora)
    step = optimised(model, under_autocast(our_loss, device))
    taken = statistics.median(seconds(lambda: step(inputs), device, 5))
    rows = " × ".join(str(n) for n in inputs["input_ids"].shape)
    return [rows, f"{questions / taken:.1f}", f"{tokens / taken:.0f}", f"{flops / taken / top:.0%}", peak(device)]


def reference_training(config: PreTrainedConfig, style: str, device: torch.device, rows: int) -> list[str]:
    """Cells of the reference recipe: the adapter alone trained, padded to the longest, logits at every position."""
    free(device)
    setting = Setting.around(lambda: on_card(config, device, Way()), config.hidden_size, 512, style)
    step = optimised(setting.model().train(), under_autocast(reference_loss, device))
    inputs = padded(setting.batch(range(rows), True), setting.longest(), setting.collator.processor.filler_id, True)
    given = {name: value.to(device) for name, value in inputs.items()}
    taken = statistics.median(seconds(lambda: step(given), device, 5))
    return [
        f"{rows} × {given['input_ids'].shape[1]}",
        f"{rows / taken:.1f}",
        f"{given['input_ids'].numel() / taken:.0f}",
        "",
        peak(device),
    ]


def inference(config: PreTrainedConfig, style: str, device: torch.device, rows: int, asked: int) -> list[list[str]]:
    """Side, batch, questions a second and times the reference, memory."""
    free(device)
    setting = Setting.around(lambda: on_card(config, device, Way()), config.hidden_size, max(asked, 64), style)
    sides = inference_sides(setting, [list(range(asked))], rows)
    taken = {}
    for name, work in sides.items():
        free(device)
        taken[name] = (statistics.median(seconds(lambda work=work: work(0), device, 2)), peak(device))  # type: ignore[misc]
    first = taken["reference"][0]
    return [
        [style, name, str(rows), f"{asked / time_:.1f}", f"{first / time_:.1f} ×", memory]
        for name, (time_, memory) in taken.items()
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself, with --quick")
    parser.add_argument("--questions", type=int, default=256, help="questions of a training step")
    parser.add_argument("--rows", type=int, default=32, help="questions of a batch of answers, and of a reference step")
    parser.add_argument("--asked", type=int, default=512, help="questions answered in a round")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no CUDA device here")
    device, shapes = torch.device(arguments.device), SHAPES
    product = PRODUCT
    if arguments.quick:
        shapes, product = SMALL, 512
        arguments.questions, arguments.rows, arguments.asked = 16, 4, 8
        torch.set_num_threads(arguments.threads)
    top = product_flops(device, product)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no card"
    ways = [Way(), Way(checkpointing=True)]
    if not arguments.quick:
        ways.append(Way(compiled=True))  # minutes on a CPU
    if find_spec("flash_attn") is not None and device.type == "cuda":
        ways.append(Way(attention="flash_attention_2"))
    if find_spec("liger_kernel") is not None and device.type == "cuda":
        ways.append(Way(liger=True))
    if find_spec("bitsandbytes") is not None:
        ways += [Way("nf4"), Way("int8")]
    table: list[list[str]] = []

    def add(*cells: str) -> None:
        table.append(list(cells))
        print(*cells, file=sys.stderr, flush=True)

    for name, config in shapes.items():
        for style in ("instruct", "preamble"):
            reference = reference_training(config, style, device, arguments.rows)
            add(name, "training", style, "reference, bf16", *reference, "1.0 ×")
            for way in ways:
                cells = training(config, way, style, device, arguments.questions, top)
                add(name, "training", style, str(way), *cells, f"{float(cells[1]) / float(reference[1]):.1f} ×")
            for style_, side, rows, rate, times, memory in inference(config, style, device, arguments.rows, arguments.asked):
                add(name, "inference", style_, side, rows, rate, "", "", memory, times)
    head = [
        "backbone",
        "what",
        "prompts",
        "way",
        "rows",
        "questions / s",
        "tokens / s",
        "utilisation",
        "peak, GiB",
        "× reference",
    ]
    notes = (
        f"Card: {card}, torch {torch.__version__}; a bf16 product of {product}³ ran at {top / 1e12:.1f} TFLOP/s. Packed "
        f"rows of at most {PACKING_LENGTH} tokens, {arguments.questions} questions a step; answers in batches of "
        f"{arguments.rows}. Medians of five steps, or of two rounds of answers."
    )
    report("gpu", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
