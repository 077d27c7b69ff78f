"""Label scoring equals one full forward pass per answer."""

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_mer.decoding.labels import AnswerTree, LabelScorer

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


def test_shared_beginnings_are_stored_once() -> None:
    tree = AnswerTree.build([[5], [5, 6], [5, 6, 7], [5, 9]], END)
    assert tree.tokens == [5, 6, 7, 9]
    assert tree.parents == [0, 1, 2, 1]
    assert tree.depths == [1, 2, 3, 2]


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        AnswerTree.build([[]], END)
