"""Answer scoring equals one full forward pass per answer, whatever stands beside a prompt in its row or batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from llm_mer.adapters.base import FusionOutput
from llm_mer.errors import UserError
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_scorer import AnswerScores, AnswerTreeScorer
from llm_mer.scoring.answer_tree import AnswerTree, has_prefix_conflict
from llm_mer.scoring.prefix_cache import PrefixCache
from llm_mer.scoring.prompt_layout import TaskPrompts, common_length, group_tasks, shared_prefix

ANSWERS = [[5], [5, 6], [5, 6, 7], [8, 9], [10], [5, 9, 9]]
OTHER_ANSWERS = [[11], [12, 13], [12, 14]]
END = 2
PSEUDO = 2


def build(architecture: str, attention: str) -> MerForConditionalGeneration:
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
    inner = LlamaForCausalLM(LlamaConfig(**shared)) if architecture == "llama" else GlmForCausalLM(GlmConfig(**shared))
    for parameter in inner.parameters():
        parameter.data.mul_(4)  # far from uniform, so that a wrong token would show
    options = {"hidden_size": 8, "num_heads": 2, "num_pseudo_tokens": PSEUDO, "backbone_size": 32}
    config = MerConfig(text_config=inner.config, adapter="egmf", adapter_config={**options, "feature_sizes": {"audio": 3}})
    return MerForConditionalGeneration.from_backbone(inner, config).eval()


def brute_force(
    model: MerForConditionalGeneration,
    prompts: Sequence[torch.Tensor],
    end: int | None,
    answers: Sequence[Sequence[int]] = ANSWERS,
    fusion: FusionOutput | None = None,
    start: int = 0,
) -> torch.Tensor:
    """One forward per prompt and answer; with ``fusion`` the pseudo tokens stand from ``start`` on."""
    rows = []
    for i, prompt in enumerate(prompts):
        row = []
        for answer in answers:
            tokens = [*answer, *([end] if end is not None else [])]
            ids = torch.cat([prompt, torch.tensor(tokens)])[None]
            given: dict[str, Any] = {}
            if fusion is not None:
                given = {"pseudo_token_mask": torch.zeros_like(ids, dtype=torch.bool)}
                given["pseudo_token_mask"][0, start : start + PSEUDO] = True
                given["fusion"] = FusionOutput(fusion.pseudo_tokens[i : i + 1])
            logits = model(ids, **given).logits.log_softmax(-1)[0]
            row.append(sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(tokens)))
        rows.append(row)
    return torch.tensor(rows)


def asked(
    prompts: Sequence[torch.Tensor],
    end: int | None = END,
    answers: Sequence[Sequence[int]] = ANSWERS,
    start: int = 0,
    count: int = 0,
) -> TaskPrompts:
    return TaskPrompts([PromptIds(p.tolist(), start, count) for p in prompts], AnswerTree.build(answers, end))


def score(
    model: MerForConditionalGeneration, prompts: Sequence[torch.Tensor], kept: PrefixCache | None = None
) -> torch.Tensor:
    (found,) = AnswerTreeScorer(model).score([asked(prompts)], {}, kept)
    return found.unnormalised


def pseudo_tokens(batch: int) -> FusionOutput:
    return FusionOutput(torch.randn(batch, PSEUDO, 32, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("architecture", ["llama", "glm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_scores_equal_one_forward_per_answer(architecture: str, attention: str) -> None:
    model = build(architecture, attention)
    prompts = [torch.randint(3, 50, (n,)) for n in (4, 7, 6)]
    torch.testing.assert_close(score(model, prompts), brute_force(model, prompts, END), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "glm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pseudo", [False, True])
def test_a_prefix_that_all_prompts_share_is_computed_once_and_scores_stay_the_same(
    architecture: str, attention: str, pseudo: bool
) -> None:
    model = build(architecture, attention)
    prefix = torch.randint(3, 50, (12,))
    prompts = [torch.cat([prefix, torch.tensor([3 + i]), torch.randint(3, 50, (n,))]) for i, n in enumerate((4, 7, 0))]
    # What stands at pseudo-token positions is not read as ids, so nothing from there on is shared.
    given = asked(prompts, start=9, count=PSEUDO) if pseudo else asked(prompts)
    shared = 9 if pseudo else 12
    assert shared_prefix(given.prompts) == shared
    fusion = pseudo_tokens(3) if pseudo else None
    seen: list[tuple[int, ...]] = []

    def watch(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))
        positions = kwargs.get("pseudo_token_mask")
        if positions is not None:  # the model must be given each pseudo-token position once
            assert positions.shape == kwargs["input_ids"].shape
            assert positions.sum(dim=1).tolist() == [2, 2, 2]

    handle = model.model.register_forward_pre_hook(watch, with_kwargs=True)
    (found,) = AnswerTreeScorer(model).score([given], {"fusion": fusion} if pseudo else {})
    handle.remove()
    longest, answers = max(map(len, prompts)), len(AnswerTree.build(ANSWERS, END).tokens)
    assert seen == [(1, shared), (3, longest - shared + answers)]
    expected = brute_force(model, prompts, END, fusion=fusion, start=9)
    torch.testing.assert_close(found.unnormalised, expected, atol=2e-5, rtol=1e-5)
    assert found.fusion is fusion


@pytest.mark.parametrize("architecture", ["llama", "glm"])
def test_a_kept_prefix_is_not_computed_again_and_a_batch_scores_the_same_whatever_came_before(architecture: str) -> None:
    model = build(architecture, "sdpa")
    prefix, other = torch.randint(3, 50, (2, 12))

    def batch(start: torch.Tensor, *lengths: int) -> list[torch.Tensor]:
        return [torch.cat([start, torch.tensor([3 + i]), torch.randint(3, 50, (n,))]) for i, n in enumerate(lengths)]

    batches = [batch(prefix, 4, 2), batch(prefix, 3, 5, 1), batch(other, 4, 2), batch(prefix, 2, 6)]
    passes: list[int] = []
    model.model.register_forward_hook(lambda module, args, kwargs, output: passes.append(1), with_kwargs=True)
    kept = PrefixCache()
    counts = []
    for prompts in batches:
        passes.clear()
        scores = score(model, prompts, kept)
        counts.append(len(passes))
        assert torch.equal(scores, score(model, prompts, PrefixCache()))
        torch.testing.assert_close(scores, brute_force(model, prompts, END), atol=2e-5, rtol=1e-5)
    assert counts == [2, 1, 2, 2]
    # One row of the prefix is all that is held, whatever batches came.
    (_, cache), length = kept.found[0], len(kept.found[0][0])
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(1, 2, length, 8)] * 2  # type: ignore[union-attr]


# --- several tasks about one utterance --------------------------------------------------------------------------------


def two_tasks(instruction: bool) -> tuple[TaskPrompts, TaskPrompts, list[list[torch.Tensor]]]:
    """Prompts of two tasks about three utterances that part behind the transcript, or at an instruction before all."""
    generator = torch.Generator().manual_seed(7)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(15, 50, (count,), generator=generator)

    head, questions = ids(10), (ids(3), ids(5))
    heads = (head, torch.cat([ids(1), head[1:]])) if instruction else (head, head)
    told = [ids(PSEUDO + n) for n in (4, 9, 6)]
    # The first of these utterances ends one of its prompts where the other goes on.
    tails = [[torch.cat([t, q]) for q in questions] for t in told]
    tails[0][0] = told[0]
    prompts = [[torch.cat([heads[task], tail[task]]) for tail in tails] for task in (0, 1)]
    one = asked(prompts[0], start=10, count=PSEUDO)
    return one, asked(prompts[1], answers=OTHER_ANSWERS, start=10, count=PSEUDO), prompts


@pytest.mark.parametrize("architecture", ["llama", "glm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("instruction", [False, True])
def test_two_tasks_score_as_each_alone_and_what_they_share_is_computed_once(
    architecture: str, attention: str, instruction: bool
) -> None:
    model, fusion = build(architecture, attention), pseudo_tokens(3)
    one, other, prompts = two_tasks(instruction)
    assert group_tasks([one, other]) == ([[0], [1]] if instruction else [[0, 1]])
    positions: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    scorer = AnswerTreeScorer(model)
    both = scorer.score([one, other], {"fusion": fusion})
    handle.remove()
    if not instruction:
        trunks = [common_length([a.ids, b.ids]) - 10 for a, b in zip(one.prompts, other.prompts, strict=True)]
        questions = [
            len(a.ids) + len(b.ids) - 20 - 2 * t for a, b, t in zip(one.prompts, other.prompts, trunks, strict=True)
        ]
        nodes = len(one.answers.tokens) + len(other.answers.tokens)
        assert positions == [10, 3 * (max(t + q for t, q in zip(trunks, questions, strict=True)) + nodes)]
    for own, found, texts, answers in zip((one, other), both, prompts, (ANSWERS, OTHER_ANSWERS), strict=True):
        (alone,) = scorer.score([own], {"fusion": fusion})
        torch.testing.assert_close(found.log_probabilities.exp(), alone.log_probabilities.exp(), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.unnormalised, alone.unnormalised, atol=1e-5, rtol=1e-6)
        expected = brute_force(model, texts, END, answers, fusion, start=10)
        torch.testing.assert_close(found.unnormalised, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_float64_two_tasks_behind_a_kept_prefix_score_as_one_forward_per_answer(attention: str) -> None:
    """Weights and attention are float64; norms, rotations and the scores are float32, and set the tolerance."""
    model, fusion = build("llama", attention).double(), pseudo_tokens(3)
    one, other, prompts = two_tasks(instruction=False)
    scorer, kept = AnswerTreeScorer(model), PrefixCache()
    scorer.score([one, other], {"fusion": fusion}, kept)
    both = scorer.score([one, other], {"fusion": fusion}, kept)
    for found, texts, answers in zip(both, prompts, (ANSWERS, OTHER_ANSWERS), strict=True):
        expected = brute_force(model, texts, END, answers, fusion, start=10)
        torch.testing.assert_close(found.unnormalised, expected, atol=4e-6, rtol=0)


def test_the_adapter_runs_once_however_many_tasks_and_passes() -> None:
    model = build("llama", "sdpa")
    runs: list[int] = []
    model.model.fusion_adapter.register_forward_hook(lambda *given: runs.append(1))
    features = {"audio_features": torch.randn(3, 4, 3), "audio_mask": torch.ones(3, 4, dtype=torch.bool)}
    for instruction in (False, True):
        runs.clear()
        one, other, _ = two_tasks(instruction)
        first, second = AnswerTreeScorer(model).score([one, other], features)
        assert runs == [1]
        assert first.fusion is second.fusion is not None


def test_scoring_reads_no_value_back_from_the_device() -> None:
    model, fusion = build("llama", "sdpa").to("meta"), FusionOutput(torch.zeros(3, PSEUDO, 32, device="meta"))
    one, other, _ = two_tasks(False)
    first, second = AnswerTreeScorer(model).score([one, other], {"fusion": fusion}, PrefixCache())
    assert first.log_probabilities.shape == (3, len(ANSWERS))
    assert second.outside_mass.shape == (3,)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_answers_are_scored_by_a_mask_where_the_model_attends_without_one(attention: str) -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (n,)) for n in (4, 7)]
    expected = score(model, prompts)
    model.config.get_text_config()._attn_implementation = attention
    assert torch.equal(score(model, prompts), expected)
    assert model.config.get_text_config()._attn_implementation == attention


def test_under_autocast_the_sums_over_an_answers_tokens_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (n,)) for n in (4, 7)]
    edges: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, args, output: edges.append(output.answer_log_probs))
    with torch.autocast("cpu", torch.bfloat16):
        scores = score(model, prompts)
    assert scores.dtype == torch.float32
    paths = AnswerTree.build(ANSWERS, END).paths
    expected = [[sum(float(row[edge]) for edge in path) for path in paths] for row in edges[0].double()]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["full_attention", "sliding_attention"], r"take up to 15 positions, and layers of this llama see the last 12"),
        (["full_attention", "linear_attention"], r"has layers of linear_attention, which do not take a mask"),
    ],
)
def test_a_backbone_that_would_not_keep_to_the_mask_is_refused(layers: list[str], message: str) -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (n,)) for n in (4, 7)]
    config: Any = model.config.get_text_config()
    config.layer_types, config.sliding_window = layers, 64
    if "sliding_attention" in layers:
        score(model, prompts)
        config.sliding_window = 12
    with pytest.raises(UserError, match=message):
        score(model, prompts)


def test_nothing_is_shared_by_a_single_prompt_or_different_prefixes() -> None:
    ids = list(range(3, 15))
    alike = [PromptIds(ids, 0, 0), PromptIds(list(ids), 0, 0)]
    assert shared_prefix(alike) == 11, "the last token stays, or there would be nothing to predict from"
    assert shared_prefix(alike[:1]) == 0
    assert shared_prefix(alike[:1], single=True) == 11
    other = [*ids[:4], 40, *ids[5:]]
    assert shared_prefix([alike[0], PromptIds(other, 0, 0)]) == 4


def test_without_an_end_token_only_the_answer_tokens_count() -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (5,))]
    (found,) = AnswerTreeScorer(model).score([asked(prompts, end=None)], {})
    torch.testing.assert_close(found.unnormalised, brute_force(model, prompts, None), atol=2e-5, rtol=1e-5)


def test_a_sample_scores_the_same_alone_and_in_a_batch() -> None:
    model = build("glm", "sdpa")
    prompts = [torch.randint(3, 50, (n,)) for n in (3, 9)]
    alone = torch.cat([score(model, [prompt]) for prompt in prompts])
    torch.testing.assert_close(score(model, prompts), alone, atol=2e-5, rtol=1e-5)


def test_log_probabilities_sum_to_one_and_the_mass_outside_is_that_of_every_other_text() -> None:
    model = build("llama", "sdpa")
    prompts = [torch.randint(3, 50, (6,))]
    answers = [[5], [6]]
    (found,) = AnswerTreeScorer(model).score([asked(prompts, None, answers)], {})
    torch.testing.assert_close(found.log_probabilities.exp().sum(-1), torch.ones(1))
    assert float(found.admissible_mass) < 0
    # Of one token each, the others are all other tokens.
    likely = model(prompts[0][None]).logits[0, -1].double().softmax(-1)
    rest = sum(float(likely[token]) for token in range(50) if [token] not in answers)
    assert float(found.outside_mass.exp()) == pytest.approx(rest, rel=1e-5)


def test_where_answers_hold_all_the_mass_what_is_outside_is_as_small_as_float32_tells_and_never_infinite() -> None:
    certain = AnswerScores(torch.tensor([[0.0, -200.0], [1e-6, -200.0], [-0.5, -200.0]]), None)
    assert certain.outside_mass[:2].tolist() == pytest.approx([-15.94, -15.94], abs=0.01)
    assert float(certain.outside_mass[2]) == pytest.approx(float(torch.log(1 - torch.exp(torch.tensor(-0.5)))))


def test_answers_one_of_which_begins_another_are_in_conflict() -> None:
    assert has_prefix_conflict(ANSWERS)
    assert not has_prefix_conflict(OTHER_ANSWERS)


def test_shared_prefixes_are_stored_once() -> None:
    tree = AnswerTree.build([[5], [5, 6], [5, 6, 7], [5, 9]], END)
    assert tree.tokens == [5, 6, 7, 9]
    assert tree.parents == [0, 1, 2, 1]
    assert tree.depths == [1, 2, 3, 2]


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        AnswerTree.build([[]], END)
