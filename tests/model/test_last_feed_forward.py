"""Where answers are scored, the last layer's feed-forward part runs at the positions that are read; scores stay the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llm_mer.adapters.base import FusionOutput
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.model import modeling_mer
from llm_mer.model.configuration_mer import MerConfig
from llm_mer.model.last_feed_forward import feed_forward_at, find_last_feed_forward
from llm_mer.model.modeling_mer import MerForConditionalGeneration
from llm_mer.model.outputs import NextTokens
from llm_mer.model.processing_mer import PromptIds
from llm_mer.scoring.answer_scorer import AnswerScores, AnswerTreeScorer
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.prefix_cache import PrefixCache
from llm_mer.scoring.prompt_layout import TaskPrompts

RECOGNISED = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "glm", "glm4", "phi", "phi3"]
OTHERS = ["mixtral", "qwen3_moe", "gpt_neox"]
LAYERS, BATCH, PSEUDO, PREFIX, END = 2, 3, 2, 10, 2


def build(family: str, dtype: torch.dtype = torch.float32) -> MerForConditionalGeneration:
    """A small random backbone of a family, whose answers are far from uniform, with a read-out."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": END,
    }
    if family in OTHERS:
        options |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    inner = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**options), dtype=dtype)
    for parameter in inner.parameters():
        parameter.data.mul_(4)
    adapter = {"hidden_size": 8, "num_heads": 2, "num_pseudo_tokens": PSEUDO, "backbone_size": 32}
    config = MerConfig(
        text_config=inner.config,
        adapter="egmf",
        adapter_config={**adapter, "feature_sizes": {"audio": 3}},
        read_out={"emotion": 4},
    )
    return MerForConditionalGeneration.from_backbone(inner, config).eval()


def add_lora(model: MerForConditionalGeneration) -> None:
    """LoRA away from zero on every linear layer, those of the feed-forward parts among them."""
    targets = find_lora_targets(model.model.language_model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets))  # type: ignore[arg-type]  # it wraps any model
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)


def questions() -> list[TaskPrompts]:
    """Two tasks about three utterances of differing length, behind an instruction that all share."""
    generator = torch.Generator().manual_seed(7)

    def ids(count: int) -> list[int]:
        return torch.randint(15, 50, (count,), generator=generator).tolist()

    instruction, told, ends = ids(PREFIX), [ids(PSEUDO + n) for n in (4, 9, 6)], (ids(3), ids(5))
    answers = ([[5], [5, 6], [5, 6, 7], [8, 9]], [[11], [12, 13], [12, 14]])
    return [
        TaskPrompts([PromptIds(instruction + t + end, PREFIX, PSEUDO) for t in told], AnswerTree.build(found, END))
        for end, found in zip(ends, answers, strict=True)
    ]


def score(model: MerForConditionalGeneration, batches: int = 2) -> list[AnswerScores]:
    """Scores of a batch that takes its instruction from the one before."""
    fusion = FusionOutput(torch.randn(BATCH, PSEUDO, 32, generator=torch.Generator().manual_seed(3)))
    kept = PrefixCache()
    for _ in range(batches):
        found = AnswerTreeScorer(model).score(questions(), {"fusion": fusion}, kept)
    return found


@contextmanager
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plain computation, at every position."""
    with monkeypatch.context() as patch:
        patch.setattr("llm_mer.model.last_feed_forward.find_last_feed_forward", lambda language_model: None)
        yield


@contextmanager
def rows_of(layers: list[nn.Module]) -> Iterator[list[tuple[int, ...]]]:
    """Rows and positions of what each layer is given."""
    seen: list[tuple[int, ...]] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[:-1]))) for layer in layers
    ]
    yield seen
    for handle in handles:
        handle.remove()


def last_projections(model: MerForConditionalGeneration) -> list[nn.Module]:
    """What each layer's feed-forward part ends with."""
    body: Any = model.model.language_model
    return [getattr(layer.mlp, "down_proj", None) or layer.mlp.fc2 for layer in body.layers]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", RECOGNISED)
def test_scores_and_read_outs_are_those_of_all_positions(family: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    if lora:
        add_lora(model)
    assert find_last_feed_forward(model.model.language_model) is not None
    found = score(model)
    with everywhere(monkeypatch):
        expected = score(model)
    for own, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(own.log_probabilities.exp(), plain.log_probabilities.exp(), atol=1e-6, rtol=0)
        torch.testing.assert_close(own.unnormalised, plain.unnormalised, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(own.read_out, plain.read_out, atol=1e-5, rtol=1e-5)
    assert found[0].unnormalised.std() > 0.1


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", RECOGNISED)
def test_only_positions_that_are_read_reach_the_last_feed_forward_part(family: str, lora: bool) -> None:
    model = build(family)
    if lora:
        add_lora(model)
    with rows_of(last_projections(model)) as seen:
        score(model, batches=1)
    first, second = questions()
    read = 2 + len(first.answers.tokens) + len(second.answers.tokens)
    longest = max(len(a.ids) + len(b.ids) - len(a.ids[:-3]) for a, b in zip(first.prompts, second.prompts, strict=True))
    width = longest - PREFIX + read - 2
    assert seen == [*[(1, PREFIX)] * LAYERS, *[(BATCH, width)] * (LAYERS - 1), (BATCH, read)]


@pytest.mark.parametrize("family", OTHERS)
def test_a_feed_forward_part_of_another_layout_is_computed_everywhere(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    assert find_last_feed_forward(model.model.language_model) is None
    found = score(model)
    with everywhere(monkeypatch):
        expected = score(model)
    for own, plain in zip(found, expected, strict=True):
        assert torch.equal(own.unnormalised, plain.unnormalised)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)])
def test_in_half_precision_scores_differ_by_no_more_than_its_rounding(
    dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama", dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = score(model)
        with everywhere(monkeypatch):
            expected = score(model)
    precision = torch.finfo(torch.bfloat16 if autocast else dtype).eps
    for own, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(own.log_probabilities.exp(), plain.log_probabilities.exp(), atol=4 * precision, rtol=0)


def test_after_scoring_a_forward_computes_every_position_again() -> None:
    model = build("llama")
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    before = model(ids).logits
    score(model)
    asked = NextTokens(torch.full((2, 1), 6), torch.tensor([0, 0]), torch.tensor([5, 6]))
    with torch.no_grad():
        output = model(ids, next_tokens=asked)
    assert output.last_hidden_state is None, "it would be right at the positions that were read alone"
    torch.testing.assert_close(output.answer_log_probs, before[:, -1].log_softmax(-1)[:, 5:7])
    with pytest.raises(RuntimeError, match="stop"), feed_forward_at(model.model.language_model, asked.positions):
        raise RuntimeError("stop")
    assert torch.equal(model(ids).logits, before)


def test_another_threads_forward_computes_every_position() -> None:
    model = build("llama")
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    before = model(ids).logits
    found: list[Tensor] = []
    with feed_forward_at(model.model.language_model, torch.full((2, 1), 6)):
        other = threading.Thread(target=lambda: found.append(model(ids).logits))
        other.start()
        other.join()
        own = model(ids).logits
    assert torch.equal(found[0], before)
    assert not torch.allclose(own[:, :-1], before[:, :-1])
    torch.testing.assert_close(own[:, -1], before[:, -1])


def test_normalisers_of_the_vocabulary_are_logsumexp_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    hidden = 30 * torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(5))
    asked = NextTokens(torch.tensor([[0, 3], [1, 2], [5, 5], [4, 0]]), torch.tensor([0, 1, 1]), torch.tensor([7, 8, 9]))
    expected = []
    for row, positions in enumerate(asked.positions):
        logits = (hidden[row, positions].double() @ model.lm_head.weight.detach().double().T).numpy()
        high = logits.max(-1, keepdims=True)
        normaliser = np.log(np.exp(logits - high).sum(-1)) + high[:, 0]
        expected.append([logits[n, t] - normaliser[n] for n, t in zip(asked.nodes, asked.tokens, strict=True)])
    for elements in (2**26, 2 * 50, 1):
        monkeypatch.setattr(modeling_mer, "CHUNK_ELEMENTS", elements)
        with torch.no_grad():
            found = model._log_probs(hidden, asked)
        torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=1e-5)
