"""What does scoring every admissible answer cost, against one prefill of the same prompts and against greedy decoding?

Aim: at most 1.1 × one prefill. ``AnswerTreeScorer`` makes one pass of the prompt and all answers behind it under a tree
mask. It is timed over 7 labels of one to three tokens and over the 61 scores from -3.0 to 3.0 written digit by digit,
against the prefix pass alone (with logits at the last position), greedy ``generate`` of as many tokens as the longest
answer has, and one full forward per answer, with which its scores must agree.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from common import (
    PSEUDO_TOKENS,
    Size,
    alternate,
    answer_prompts,
    backbone,
    mer_batch,
    mer_model,
    milliseconds,
    options,
    ratio,
    report,
)
from torch import Tensor

from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.prompting.tasks import builtin_tasks
from llm_mer.scoring.answer_scorer import AnswerTreeScorer

END = 2
LABELS = [[101], [102], [103], [104, 105], [106, 107], [106, 108], [109, 110, 111]]


def scores() -> list[list[int]]:
    """The grid of the ``sentiment`` task, one token for each character (SentencePiece with split digits does this)."""
    task = builtin_tasks()["sentiment"]
    return [[200 + ord(character) for character in task.format_score(value)] for value in task.grid()]


@torch.no_grad()
def prefill(model: MerForConditionalGeneration, inputs: dict[str, Tensor]) -> Tensor:
    """One pass over the prompts that fills the cache, and log-probabilities of the next token."""
    hidden = model.model(**inputs, use_cache=True).last_hidden_state[:, -1]
    return torch.log_softmax(model.lm_head(hidden), dim=-1)


@torch.no_grad()
def brute_force(
    model: MerForConditionalGeneration, inputs: dict[str, Tensor], answers: list[list[int]], end: int | None
) -> Tensor:
    """One full forward per answer: ``(B, C)``."""
    rows, length = inputs["input_ids"].shape
    columns = []
    for answer in answers:
        tokens = torch.tensor([*answer, *([] if end is None else [end])])
        extended = dict(inputs)
        extended["input_ids"] = torch.cat([inputs["input_ids"], tokens.expand(rows, -1)], dim=1)
        extended["attention_mask"] = torch.ones_like(extended["input_ids"])
        extended["pseudo_token_mask"] = torch.nn.functional.pad(inputs["pseudo_token_mask"], (0, len(tokens)))
        hidden = model.model(**extended, use_cache=False).last_hidden_state[:, length - 1 : -1]
        chosen = torch.log_softmax(model.lm_head(hidden), dim=-1).gather(2, tokens.expand(rows, -1)[..., None])
        columns.append(chosen.sum(dim=(1, 2)))
    return torch.stack(columns, dim=1)


def measure(
    model: MerForConditionalGeneration,
    inputs: dict[str, Tensor],
    answers: list[list[int]],
    end: int | None,
    repetitions: int,
) -> list[str]:
    """The cells of one row."""
    scorer = AnswerTreeScorer(model)
    asked, given = answer_prompts(inputs, answers, end)
    longest = max(map(len, answers)) + (end is not None)
    limits = {"max_new_tokens": longest, "min_new_tokens": longest, "do_sample": False}
    sides: dict[str, Callable[[], object]] = {
        "scorer": lambda: scorer.score([asked], given),
        "prefill": lambda: prefill(model, inputs),
        "greedy": lambda: model.generate(**inputs, **limits),
    }
    taken = alternate(sides, repetitions)
    checked = answers if len(answers) < 10 else answers[:: len(answers) // 3]
    found: list[Tensor] = []
    once = alternate({"brute": lambda: found.append(brute_force(model, inputs, checked, end))}, 1, warmup=0)["brute"][0]
    brute = once * len(answers) / len(checked)
    chosen = scorer.score([asked], given)[0].unnormalised[:, [answers.index(answer) for answer in checked]]
    times = [milliseconds(taken[side]) for side in sides] + [f"{1000 * brute:.0f}"]
    ratios = [ratio(taken["scorer"], taken["prefill"]), ratio(taken["scorer"], taken["greedy"])]
    ratios.append(statistics.median(taken["scorer"]) / brute)
    difference = float((chosen - found[0]).abs().max())
    return [str(len(asked.answers.tokens)), *times, *(f"{value:.2f} ×" for value in ratios), f"{difference:.1e}"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=8, help="prompts in a batch")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    plan = [(Size(), 96), (Size(), 259), (Size(8, 512), 259)]
    rows, repetitions = arguments.rows, arguments.repetitions
    if arguments.quick:
        plan, rows, repetitions = [(Size(2, 128, 4000), 64)], 4, 2
    table = []
    with torch_threads(arguments.threads):
        for size, tokens in plan:
            model = mer_model(backbone(size)).eval()
            inputs = mer_batch(size, rows, tokens, answer=False)
            for name, answers in {"7 labels": LABELS, "61 scores": scores()}.items():
                for end in (END, None):
                    closed = "" if end is not None else ", no end token"
                    cells = measure(model, inputs, answers, end, repetitions)
                    table.append([str(size), tokens, f"{name}{closed}", *cells])
                    print(*table[-1], file=sys.stderr, flush=True)
    head = ["layers × size", "prompt", "answers", "packed positions", "scoring, ms", "prefill, ms", "greedy, ms"]
    head += ["one forward per answer, ms", "÷ prefill", "÷ greedy", "÷ one forward per answer", "largest difference"]
    notes = (
        f"Batch {rows}, vocabulary {plan[0][0].vocabulary}, {PSEUDO_TOKENS} pseudo tokens of EGMF (each pass over the "
        f"prompt runs the adapter), {arguments.threads} thread(s), float32, random weights; processor time, medians, sides "
        "in turn. Labels have 1, 1, 1, 2, 2, 2 and 3 tokens; the end token closes an answer unless said otherwise. Greedy "
        "decoding makes as many tokens as the longest answer has, its end included. One forward per answer was timed over "
        "all 7 labels, and over every twentieth score and scaled. `largest difference` is between log-probabilities of "
        "whole answers."
    )
    report("label_scoring", __doc__, head, table, notes, arguments.quick)


if __name__ == "__main__":
    main()
