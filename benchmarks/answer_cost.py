"""What does an answer cost, against one forward of the tokens that only its utterance has, and what does a second task cost?

Limits: one task at most 1.2 × a forward of the utterances' own prompt tokens; a second task on the same utterances at most
the share of tokens that it adds. The instruction that all prompts begin with is kept from batch to batch, as ``Predictor``
keeps it. Tasks: 7 labels of one to three tokens, and the 61 scores from -3.0 to 3.0 written digit by digit. What exact
answers cannot do without, the positions of their tokens and the logits behind each, is timed as a plain forward beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
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
from label_scoring import END, LABELS, prefill, scores
from torch import Tensor

from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.modeling_mer import FUSION_KEYS, MerForConditionalGeneration
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_scorer import AnswerTreeScorer
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.prefix_cache import PrefixCache
from llm_mer.scoring.prompt_layout import PromptLayout, TaskPrompts

INSTRUCTION, QUESTION = 64, 12
"""Tokens that all prompts begin with, and tokens at the end of a prompt that ask for one task."""
LIMIT = 1.2


def task_prompts(own: Tensor, answers: list[list[int]], task: int, vocabulary: int, end: int | None = END) -> TaskPrompts:
    """One task's prompts: the instruction, pseudo tokens and text ``own (B, T)``, whose last positions ask for the task."""
    generator = torch.Generator().manual_seed(7)
    instruction = torch.randint(3, vocabulary, (INSTRUCTION,), generator=generator).tolist()
    # No question begins like another: its first token is the task's own.
    question = [3 + task, *torch.randint(3, vocabulary, (QUESTION - 1,), generator=generator).tolist()]
    prompts = [PromptIds(instruction + row[:-QUESTION] + question, INSTRUCTION, PSEUDO_TOKENS) for row in own.tolist()]
    return TaskPrompts(prompts, AnswerTree.build(answers, end))


def verdict(value: float, limit: float) -> str:
    """The ratio with its limit beside it."""
    return f"{value:.3f} × (limit {limit:.3f} ×: {'met' if value <= limit else 'missed'})"


def differences(taken: dict[str, list[float]], more: str, less: str) -> list[float]:
    """Seconds by which one side took longer than another, of each turn."""
    return [a - b for a, b in zip(taken[more], taken[less], strict=True)]


def plain_inputs(size: Size, rows: int, tokens: int) -> dict[str, Tensor]:
    """A batch of ``tokens`` positions a row whose pseudo tokens stand first, as they do behind the instruction."""
    batch = mer_batch(size, rows, tokens, answer=False)
    batch["pseudo_token_mask"].zero_()
    batch["pseudo_token_mask"][:, :PSEUDO_TOKENS] = True
    return batch


@torch.no_grad()
def forward_reading(model: MerForConditionalGeneration, inputs: dict[str, Tensor], count: int) -> Tensor:
    """A plain causal forward, and the normalisers of the logits at the last ``count`` positions of each row."""
    hidden = model.model(**inputs, use_cache=True).last_hidden_state[:, -count:]
    return model.lm_head(hidden).logsumexp(dim=-1)


def measure(size: Size, rows: int, tokens: int, repetitions: int) -> list[str]:
    """The cells of one row."""
    model = mer_model(backbone(size)).eval()
    scorer = AnswerTreeScorer(model)
    inputs = plain_inputs(size, rows, tokens)
    given: dict[str, Any] = {name: value for name, value in inputs.items() if name in FUSION_KEYS}
    labels = task_prompts(inputs["input_ids"], LABELS, 0, size.vocabulary)
    values = task_prompts(inputs["input_ids"], scores(), 1, size.vocabulary)
    widths = [PromptLayout.build(asked, single=True).input_ids.shape[1] for asked in ([labels], [labels, values])]
    with_answers, with_both = (plain_inputs(size, rows, width) for width in widths)
    read = [1 + len(labels.answers.tokens), 2 + len(labels.answers.tokens) + len(values.answers.tokens)]
    without_ends = [
        task_prompts(inputs["input_ids"], answers, task, size.vocabulary, end=None)
        for task, answers in enumerate((LABELS, scores()))
    ]
    kept = [PrefixCache() for _ in range(6)]

    def apart() -> None:
        scorer.score([labels], given, kept[2])
        scorer.score([values], given, kept[3])

    sides: dict[str, Callable[[], object]] = {
        "own": lambda: prefill(model, inputs),
        "own and answers": lambda: forward_reading(model, with_answers, read[0]),
        "own and both": lambda: forward_reading(model, with_both, read[1]),
        "one": lambda: scorer.score([labels], given, kept[0]),
        "one, nothing kept": lambda: scorer.score([labels], given),
        "two": lambda: scorer.score([labels, values], given, kept[1]),
        "apart": apart,
        "one, no ends": lambda: scorer.score(without_ends[:1], given, kept[4]),
        "two, no ends": lambda: scorer.score(without_ends, given, kept[5]),
    }
    taken = alternate(sides, repetitions, twice=True)
    return [
        f"{tokens}, {widths[0]}, {widths[1]}",
        *(milliseconds(taken[side]) for side in sides),
        verdict(ratio(taken["one"], taken["own"]), LIMIT),
        f"{ratio(taken['one'], taken['own and answers']):.2f} ×",
        verdict(ratio(taken["two"], taken["one"]), widths[1] / widths[0]),
        f"{ratio(taken['two'], taken['own and both']):.2f} ×",
        f"{ratio(differences(taken, 'two', 'one'), differences(taken, 'own and both', 'own and answers')):.2f} ×",
        f"{ratio(taken['apart'], taken['two']):.2f} ×",
        verdict(ratio(taken["one, no ends"], taken["own"]), LIMIT),
        f"{ratio(taken['two, no ends'], taken['two']):.2f} ×",
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=8, help="utterances in a batch")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    sizes = [Size(4, 128, 4000), Size(6, 256, 4000), Size(8, 512, 4000)]
    plan = [(size, tokens) for size in sizes for tokens in (64, 192)]
    rows, repetitions = arguments.rows, arguments.repetitions
    if arguments.quick:
        plan, rows, repetitions = [(Size(2, 128, 4000), 64)], 4, 2
    table = []
    with torch_threads(arguments.threads):
        for size, tokens in plan:
            table.append([str(size), *measure(size, rows, tokens, repetitions)])
            print(*table[-1], sep=" | ", file=sys.stderr, flush=True)
    head = ["layers × size", "positions a row: own prompt, with 7 labels, with both tasks", "own forward, ms"]
    head += ["own and answers forward, ms", "own and both answers forward, ms", "one task, ms", "one task, nothing kept, ms"]
    head += ["two tasks, ms", "asked apart, ms", "one task, no ends, ms", "two tasks, no ends, ms"]
    head += ["one task ÷ own forward", "÷ own and answers forward", "two tasks ÷ one (limit: positions)"]
    head += ["two tasks ÷ own and both answers forward", "what the second adds ÷ what its tokens add to that forward"]
    head += ["apart ÷ two tasks", "one task, no ends ÷ own forward"]
    head += ["two tasks, no ends ÷ with them"]
    notes = (
        f"Batch {rows}, vocabulary {plan[0][0].vocabulary}, {INSTRUCTION} tokens of instruction that all prompts share, "
        f"then {PSEUDO_TOKENS} pseudo tokens of EGMF, text, and {QUESTION} tokens that ask for the task: all behind the "
        f"instruction is an utterance's own. {arguments.threads} thread(s), float32, random weights; processor time, "
        f"medians of {repetitions} turns, sides in turn, each just after it ran untimed, ratios within a turn. "
        "`own forward` runs the adapter and the backbone causally over the own prompt tokens alone (no instruction, no "
        "answers) with logits at the last position; "
        "the limit of 1.2 × is against it. `own and answers forward` is the same over as many tokens as the scorer's row "
        "has, the tokens of the answer tree included, and reads the vocabulary at as many positions as the scorer; `own and "
        "both answers forward` likewise for two tasks. `nothing kept` computes the instruction again in each batch. `asked "
        "apart` scores the two tasks one after another, each with the adapter, each with its instruction kept. `no ends` "
        "leaves out the token that ends an answer (`--answer_end false`)."
    )
    report("answer_cost", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
