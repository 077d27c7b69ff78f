"""Label scoring equals one full forward pass per answer."""

from typing import Any

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_mer.errors import UserError
from llm_mer.scoring.answer_scorer import LabelScorer, PrefixCache, shared_prefix
from llm_mer.scoring.answer_tree import AnswerTree

ANSWERS = [[5], [5, 6], [5, 6, 7], [8, 9], [10], [5, 9, 9]]
END = 2


def build(architecture: str, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    shared = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "attn_implementation": attention,
    }
    model = LlamaForCausalLM(LlamaConfig(**shared)) if architecture == "llama" else GlmForCausalLM(GlmConfig(**shared))
    for parameter in model.parameters():
        parameter.data.mul_(4)  # far from uniform, so that a wrong token would show
    return model.eval()


def brute_force(model: torch.nn.Module, prompts: list[torch.Tensor], end: int | None) -> torch.Tensor:
    rows = []
    for prompt in prompts:
        row = []
        for answer in ANSWERS:
            tokens = answer + ([end] if end is not None else [])
            logits = model(torch.cat([prompt, torch.tensor(tokens)])[None]).logits.log_softmax(-1)[0]
            row.append(sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(tokens)))
        rows.append(row)
    return torch.tensor(rows)


def padded(prompts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    length = max(len(p) for p in prompts) + 2
    ids, mask = torch.zeros(len(prompts), length, dtype=torch.long), torch.zeros(len(prompts), length, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        place = slice(length - len(prompt), length) if side == "left" else slice(0, len(prompt))
        ids[i, place], mask[i, place] = prompt, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ["llama", "glm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_scores_equal_one_forward_per_answer(architecture: str, attention: str, side: str) -> None:
    model = build(architecture, attention)
    prompts = [torch.randint(3, 50, (n,)) for n in (4, 7, 6)]
    scores = LabelScorer(model, ANSWERS, END).score(padded(prompts, side))
    torch.testing.assert_close(scores, brute_force(model, prompts, END), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "glm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pseudo", [False, True])
def test_a_beginning_that_all_prompts_share_is_computed_once_and_scores_stay_the_same(
    architecture: str, attention: str, side: str, pseudo: bool
) -> None:
    model = build(architecture, attention)
    beginning = torch.randint(3, 50, (12,))
    prompts = [torch.cat([beginning, torch.tensor([3 + i]), torch.randint(3, 50, (n,))]) for i, n in enumerate((4, 7, 0))]
    inputs = padded(prompts, side)
    shared = 12
    if pseudo:  # what stands there is not read as ids, so nothing from there on is shared
        inputs["pseudo_token_mask"] = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for i, row in enumerate(inputs["attention_mask"]):
            start = int(row.argmax())
            inputs["pseudo_token_mask"][i, start + 9 : start + 11] = True
        shared = 9
    assert shared_prefix(inputs) == shared
    seen: list[tuple[int, ...]] = []
    inner = model.model

    class Watched(torch.nn.Module):
        """The model, which must be given each pseudo-token place once."""

        config = inner.config

        def forward(self, pseudo_token_mask: torch.Tensor | None = None, **given: Any) -> Any:
            seen.append(tuple(given["input_ids"].shape))
            if pseudo_token_mask is not None:
                assert pseudo_token_mask.shape == given["input_ids"].shape
                assert pseudo_token_mask.sum(dim=1).tolist() == [2, 2, 2]
            return inner(**given)

    model.model = Watched()
    scores = LabelScorer(model, ANSWERS, END).score(inputs)
    answers = len(AnswerTree.build(ANSWERS, END).tokens)
    assert seen == [(1, shared), (3, inputs["input_ids"].shape[1] - shared + answers)]
    model.model = inner
    torch.testing.assert_close(scores, brute_force(model, prompts, END), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "glm"])
def test_a_kept_beginning_is_not_computed_again_and_a_batch_scores_the_same_whatever_came_before(architecture: str) -> None:
    model = build(architecture, "sdpa")
    beginning, other = torch.randint(3, 50, (2, 12))

    def batch(start: torch.Tensor, *lengths: int) -> list[torch.Tensor]:
        return [torch.cat([start, torch.tensor([3 + i]), torch.randint(3, 50, (n,))]) for i, n in enumerate(lengths)]

    batches = [batch(beginning, 4, 2), batch(beginning, 3, 5, 1), batch(other, 4, 2), batch(beginning, 2, 6)]
    passes: list[int] = []
    model.model.register_forward_hook(lambda module, args, kwargs, output: passes.append(1), with_kwargs=True)
    scorer, kept = LabelScorer(model, ANSWERS, END), PrefixCache()
    counts = []
    for prompts in batches:
        passes.clear()
        scores = scorer.score(padded(prompts, "left"), kept)
        counts.append(len(passes))
        assert torch.equal(scores, scorer.score(padded(prompts, "left"), PrefixCache()))
        torch.testing.assert_close(scores, brute_force(model, prompts, END), atol=2e-5, rtol=1e-5)
    assert counts == [2, 1, 2, 2]


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_answers_are_scored_by_a_mask_where_the_model_attends_without_one(attention: str) -> None:
    model = build("llama", "sdpa")
    inputs = padded([torch.randint(3, 50, (n,)) for n in (4, 7)], "left")
    expected = LabelScorer(model, ANSWERS, END).score(inputs)
    model.config._attn_implementation = attention
    assert torch.equal(LabelScorer(model, ANSWERS, END).score(inputs), expected)
    assert model.config._attn_implementation == attention


def test_under_autocast_the_sums_over_an_answers_tokens_are_not_rounded() -> None:
    model = build("llama", "sdpa")
    inputs = padded([torch.randint(3, 50, (n,)) for n in (4, 7)], "left")
    scorer = LabelScorer(model, ANSWERS, END)
    edges: list[torch.Tensor] = []
    proper = scorer._edge_log_probs
    scorer._edge_log_probs = lambda hidden: edges.append(proper(hidden)) or edges[-1]  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        scores = scorer.score(inputs)
    assert scores.dtype == torch.float32
    expected = [[sum(float(row[edge]) for edge in path) for path in scorer.tree.paths] for row in edges[0].double()]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["full_attention", "sliding_attention"], r"take up to 17 places, and layers of this llama see the last 12"),
        (["full_attention", "linear_attention"], r"has layers of linear_attention, which do not take a mask"),
    ],
)
def test_a_backbone_that_would_not_keep_to_the_mask_is_refused(layers: list[str], message: str) -> None:
    model = build("llama", "sdpa")
    inputs = padded([torch.randint(3, 50, (n,)) for n in (4, 7)], "left")
    model.config.layer_types, model.config.sliding_window = layers, 64
    if "sliding_attention" in layers:
        LabelScorer(model, ANSWERS, END).score(inputs)
        model.config.sliding_window = 12
    with pytest.raises(UserError, match=message):
        LabelScorer(model, ANSWERS, END).score(inputs)


def test_nothing_is_shared_by_a_single_prompt_several_languages_or_different_beginnings() -> None:
    ids = torch.arange(3, 15).repeat(2, 1)
    alike = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert shared_prefix(alike) == 11, "the last token stays, or there would be nothing to predict from"
    single = {name: value[:1] for name, value in alike.items()}
    assert shared_prefix(single) == 0
    assert shared_prefix(single, single=True) == 11
    assert shared_prefix({**alike, "language_ids": torch.tensor([0, 1])}) == 0
    other = ids.clone()
    other[1, 4] = 40
    assert shared_prefix({**alike, "input_ids": other}) == 4
    holes = torch.ones_like(ids)
    holes[0, 3] = 0
    assert shared_prefix({**alike, "attention_mask": holes}) == 0


def test_without_an_end_token_only_the_answer_tokens_count() -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (5,))]
    scores = LabelScorer(model, ANSWERS, None).score(padded(prompts, "left"))
    torch.testing.assert_close(scores, brute_force(model, prompts, None), atol=2e-5, rtol=1e-5)


def test_a_sample_scores_the_same_alone_and_in_a_batch() -> None:
    model = build("glm", "sdpa")
    prompts = [torch.randint(3, 50, (n,)) for n in (3, 9)]
    scorer = LabelScorer(model, ANSWERS, END)
    together = scorer.score(padded(prompts, "left"))
    alone = torch.cat([scorer.score(padded([p], "left")) for p in prompts])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)


def test_log_probabilities_sum_to_one_and_mass_stays_below_one() -> None:
    model = build("llama", "sdpa")
    inputs = padded([torch.randint(3, 50, (6,))], "left")
    scorer = LabelScorer(model, ANSWERS, END)
    torch.testing.assert_close(scorer.log_probabilities(inputs).exp().sum(-1), torch.ones(1))
    assert float(scorer.complete_mass(inputs)) < 0


def test_shared_prefixs_are_stored_once() -> None:
    tree = AnswerTree.build([[5], [5, 6], [5, 6, 7], [5, 9]], END)
    assert tree.tokens == [5, 6, 7, 9]
    assert tree.parents == [0, 1, 2, 1]
    assert tree.depths == [1, 2, 3, 2]


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        AnswerTree.build([[]], END)
