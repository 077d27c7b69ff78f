"""Routed LoRA equals one LoRA a language, whatever shares its batch, through training, saving, scoring and generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import options
from torch import nn

from llm_mer.backbones.language_lora import LanguageRouter, language_blocks, route_by_language
from llm_mer.backbones.lora_sharing import LORA_SHARING
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

RANK, ALPHA = 4, 8


class TwoLayers(nn.Module):
    """Something with linear layers that PEFT can adapt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(rank: int, alpha: int) -> Any:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        TwoLayers(), LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=["first", "second"])
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at its start, where every LoRA is the same
                parameter.normal_()
    return model.double()


@pytest.mark.parametrize("sharing", ["per_language", "shared_and_per_language"])
def test_a_mixed_batch_equals_a_plain_lora_of_each_language_on_its_own_rows(sharing: str) -> None:
    blocks = language_blocks(sharing)
    routed = adapted(RANK * len(blocks), ALPHA * len(blocks))
    router = route_by_language(routed, sharing, RANK * len(blocks))
    assert router is not None
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    router.languages = torch.tensor([0, 1, 1, 0, 1])
    mixed = routed(x)
    for place, language in enumerate(("en", "zh")):
        used = [number for number, owners in enumerate(blocks) if language in owners]
        # An ordinary LoRA that holds this language's blocks and nothing else, with the same α / r.
        plain = adapted(RANK * len(used), ALPHA * len(used))
        rows = torch.cat([torch.arange(number * RANK, (number + 1) * RANK) for number in used])
        weights, own = routed.state_dict(), plain.state_dict()
        for name, value in weights.items():
            own[name] = value[rows] if "lora_A" in name else value[:, rows] if "lora_B" in name else value
        plain.load_state_dict(own)
        chosen = router.languages == place
        torch.testing.assert_close(mixed[chosen], plain(x[chosen]), rtol=1e-12, atol=1e-12)


def test_a_sample_trains_the_ranks_of_its_language_alone() -> None:
    model = adapted(2 * RANK, 2 * ALPHA)
    router = route_by_language(model, "per_language", 2 * RANK)
    assert router is not None
    router.languages = torch.tensor([1, 1])
    model(torch.randn(2, 3, 6, dtype=torch.float64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            assert parameter.grad[:RANK].abs().max() == 0 < parameter.grad[RANK:].abs().max()
        elif "lora_B" in name:
            assert parameter.grad[:, :RANK].abs().max() == 0 < parameter.grad[:, RANK:].abs().max()


def test_sharing_everything_needs_no_router_and_leaves_lora_as_it_is() -> None:
    assert route_by_language(adapted(RANK, ALPHA), "shared", RANK) is None


def test_a_batch_whose_languages_are_not_said_or_of_another_batch_is_refused() -> None:
    router = LanguageRouter("per_language", 4)
    with pytest.raises(ValueError, match="language_ids"):
        router(nn.Identity(), (), torch.zeros(2, 3, 4))
    router.languages = torch.tensor([0])
    with pytest.raises(ValueError, match="1 samples, the batch has 2"):
        router(nn.Identity(), (), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="3 ranks cannot be cut into 2 blocks"):
        LanguageRouter("per_language", 3)


@pytest.mark.parametrize("sharing", LORA_SHARING)
def test_each_block_has_the_rank_and_scaling_asked_for(sharing: str, arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(lora_sharing=sharing, lora_r=3, lora_alpha=6)))
    layers = [m for m in trainer.model.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
    assert layers
    for layer in layers:
        assert layer.r["default"] == 3 * len(language_blocks(sharing))
        assert layer.scaling["default"] == 6 / 3


@pytest.fixture(scope="module")
def routed(shared: Any, backbones: dict[str, Path], store: Path) -> Path:
    """A checkpoint with a LoRA for each language, trained on mixed batches with activation checkpointing."""
    from conftest import training_options

    def build(folder: Path) -> None:
        changes = {"lora_sharing": "per_language", "tasks": ["emotion", "sentiment"], "gradient_checkpointing": "true"}
        finetune(training_options(store, backbones["llama"], folder, **changes))

    return shared.make("routed-by-language", build)


def test_training_moves_the_ranks_of_both_languages_and_a_loaded_checkpoint_routes_them(routed: Path, store: Path) -> None:
    loaded = load_checkpoint(routed)
    core = conditional_generation_of(loaded.model)
    assert core.model.language_router is not None
    for name, value in core.state_dict().items():
        if "lora_B" in name:
            half = value.shape[1] // 2
            assert value[:, :half].abs().max() > 0
            assert value[:, half:].abs().max() > 0
            assert not torch.equal(value[:, :half], value[:, half:])


def test_answers_do_not_depend_on_the_languages_beside_them(routed: Path, store: Path) -> None:
    utterances = list(UtteranceStore.open(store).split("test"))[:8]
    assert {u.language for u in utterances} == {"en", "zh"}
    pipeline = MerPipeline.from_pretrained(routed, generate=True)
    together = {(p.id, p.task): p for p in pipeline(utterances)}
    for utterance in utterances:
        for alone in pipeline([utterance]):
            other = together[alone.id, alone.task]
            assert alone.generated == other.generated
            assert alone.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_the_language_decides_which_lora_answers(routed: Path, store: Path) -> None:
    pipeline = MerPipeline.from_pretrained(routed)
    core = conditional_generation_of(pipeline.predictor.model)
    utterances = [u for u in UtteranceStore.open(store).split("test") if u.language == "zh"][:4]
    before = [p.log_probabilities for p in pipeline(utterances, ["emotion"])]
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "lora_B" in name:
                parameter[:, : parameter.shape[1] // 2] = 7.0  # English ranks
    assert [p.log_probabilities for p in pipeline(utterances, ["emotion"])] == before
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "lora_B" in name:
                parameter[:, parameter.shape[1] // 2 :] += 0.5
    assert [p.log_probabilities for p in pipeline(utterances, ["emotion"])] != before


def test_a_checkpoint_of_other_sharing_is_no_start(routed: Path, arguments: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"init_checkpoint.*lora_sharing 'per_language', not 'shared'"):
        build_trainer(parse_arguments([*arguments(), *options(init_checkpoint=routed, lora_sharing="shared")]))


def test_a_sharing_that_does_not_exist_is_refused(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    file = tmp_path / "each.yaml"
    file.write_text("lora_sharing: each\n", encoding="utf-8")
    with pytest.raises(UserError, match="lora_sharing: 'each' is not one of shared, per_language"):
        parse_arguments([*arguments(), "--config", str(file)])


def test_without_lora_nothing_but_the_adapter_is_trained(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(lora_sharing="per_language", lora_r=0)))
    assert all("fusion_adapter" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
