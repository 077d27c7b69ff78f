"""How much longer is a training step with an adapter than the bare backbone's LoRA step at equal tokens?

Aim: at most 1.05 ×. Both sides have the same rank, targets, dropout, optimiser and number of positions; ours spends four
of its positions on pseudo tokens and runs the adapter. The bare step is timed with logits at answer positions, as ours has
them, and with logits at every position, as causal language models are usually trained.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from common import (
    PSEUDO_TOKENS,
    Size,
    alternate,
    backbone,
    mer_batch,
    mer_model,
    milliseconds,
    options,
    ratio,
    report,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from llm_mer.adapters import adapter_class, adapter_names
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.modeling_mer import conditional_generation_of, fusion_adapter_of
from llm_mer.training.model_builder import add_lora
from llm_mer.training.options import ModelArguments

Step = Callable[[], None]


def optimiser_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward, clipping and AdamW over what is trainable."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def bare_lora(size: Size) -> nn.Module:
    """The backbone with LoRA as :func:`llm_mer.training.model_builder.add_lora` puts it, and nothing else."""
    llama, defaults = backbone(size), ModelArguments()
    targets = r"model\.layers\..*\.(" + "|".join(find_lora_targets(llama)) + ")"
    config = LoraConfig(
        r=defaults.lora_r, lora_alpha=defaults.lora_alpha, lora_dropout=defaults.lora_dropout, target_modules=targets
    )
    return get_peft_model(llama, config).train()


def bare_step(size: Size, batch: dict[str, Tensor], all_positions: bool) -> Step:
    """The bare backbone's step: transformers' own loss over all logits, or over logits at answer positions only."""
    model = bare_lora(size)
    core = model.base_model.model
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]

    def everywhere() -> Tensor:
        loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        return loss

    def answers() -> Tensor:
        hidden = core.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        places = labels[:, 1:] != -100
        return F.cross_entropy(core.lm_head(hidden[:, :-1][places]), labels[:, 1:][places])

    return optimiser_step(model, everywhere if all_positions else answers)


def mer_step(size: Size, batch: dict[str, Tensor], adapter: str, pseudo_tokens: int = PSEUDO_TOKENS) -> tuple[Step, Step]:
    """Our step as the trainer takes it (weighted auxiliary losses included), and the adapter's own share of it."""
    model = add_lora(mer_model(backbone(size), adapter, pseudo_tokens), ModelArguments()).train()
    weights = adapter_class(adapter).default_loss_weights

    def weighted(losses: dict[str, Tensor] | None) -> Tensor | float:
        return sum(weights.get(name, 0.0) * value for name, value in (losses or {}).items())

    def loss() -> Tensor:
        output = model(**batch, use_cache=False)
        return output.loss + weighted(output.fusion.aux_losses)

    fuse = conditional_generation_of(model).model.fuse

    def alone() -> Tensor:
        fused = fuse(batch)
        return fused.pseudo_tokens.sum() + weighted(fused.aux_losses)

    return optimiser_step(model, loss), optimiser_step(fusion_adapter_of(model), alone)


def measure(size: Size, rows: int, tokens: int, adapters: Sequence[str], repetitions: int) -> list[list[str | int]]:
    """One row per adapter; the two bare steps are shared by all of them."""
    plain = mer_batch(size, rows, tokens)
    sides = {"answers": bare_step(size, plain, all_positions=False), "all": bare_step(size, plain, all_positions=True)}
    for adapter in adapters:
        batch = mer_batch(size, rows, tokens, adapter)
        sides[adapter], sides[f"{adapter} alone"] = mer_step(size, batch, adapter)
    taken = alternate(sides, repetitions)
    table: list[list[str | int]] = []
    for adapter in adapters:
        times = [milliseconds(taken[name]) for name in (adapter, "answers", "all", f"{adapter} alone")]
        ratios = [f"{ratio(taken[adapter], taken[name]):.2f} ×" for name in ("answers", "all")]
        table.append([adapter, str(size), tokens, *times, *ratios])
        print(*table[-1], file=sys.stderr, flush=True)
    return table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="batch size")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    plan = [(Size(), 96, adapter_names()), (Size(), 160, ["egmf"]), (Size(8, 512), 128, ["egmf"])]
    if arguments.quick:
        plan = [(Size(2, 128, 4000), 48, ["egmf", "gated_projector"])]
    repetitions = 2 if arguments.quick else arguments.repetitions
    table = []
    with torch_threads(arguments.threads):
        for size, tokens, adapters in plan:
            table += measure(size, arguments.rows, tokens, adapters, repetitions)
    head = ["adapter", "layers × size", "positions", "ours, ms", "bare LoRA, logits at answers, ms"]
    head += ["bare LoRA, all logits, ms", "adapter alone, ms", "ours ÷ bare at answers", "ours ÷ bare, all logits"]
    notes = (
        f"Batch {arguments.rows}, vocabulary {plan[0][0].vocabulary}, {arguments.threads} thread(s), float32, random "
        "weights; processor time, medians, all sides in turn; ratios are medians of the ratio within a turn. Audio is "
        "(50, 25), vision (24, 396), transcript 24 tokens, a window of 8 utterances for adapters that read one. "
        "`adapter alone` is its forward, backward and optimiser step by itself."
    )
    report("training_step", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
