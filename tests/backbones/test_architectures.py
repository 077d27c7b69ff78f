"""Every family of backbone in the docs, as a small random model of its own configuration class, through the whole path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer, training_options
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from llm_mer.backbones.loading import load_backbone
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.inference.predictor import Predictor
from llm_mer.model.collator import MerCollator
from llm_mer.model.modeling_mer import conditional_generation_of, fusion_adapter_of
from llm_mer.scoring.answer_scorer import AnswerTreeScorer
from llm_mer.scoring.answer_tree import AnswerTree
from llm_mer.scoring.prompt_layout import TaskPrompts

SEPARATE = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
JOINED = ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """What sets a published family apart, on a small scale."""

    config: Callable[..., PreTrainedConfig]
    options: dict[str, Any]
    targets: list[str]
    model: str


def half_rotary(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 0.5}


FAMILIES = {
    "chatglm3": Family(
        GlmConfig,
        {"attention_bias": True, "head_dim": 12, "tie_word_embeddings": False, "rope_parameters": half_rotary(1e4)},
        JOINED,
        "GlmForCausalLM",
    ),
    "glm-4-9b-chat-hf": Family(
        GlmConfig,
        {"attention_bias": True, "head_dim": 12, "eos_token_id": [2, 5, 6], "rope_parameters": half_rotary(5e6)},
        JOINED,
        "GlmForCausalLM",
    ),
    "glm-4-0414": Family(
        Glm4Config,
        {"attention_bias": True, "head_dim": 12, "eos_token_id": [2, 5, 6], "rope_parameters": half_rotary(1e4)},
        JOINED,
        "Glm4ForCausalLM",
    ),
    "llama-2": Family(LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": False}, SEPARATE, "LlamaForCausalLM"),
    "llama-3": Family(
        LlamaConfig,
        {"eos_token_id": [2, 5, 6], "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
        SEPARATE,
        "LlamaForCausalLM",
    ),
    "qwen2.5": Family(Qwen2Config, {"tie_word_embeddings": True}, SEPARATE, "Qwen2ForCausalLM"),
    "qwen3": Family(Qwen3Config, {"head_dim": 16, "tie_word_embeddings": False}, SEPARATE, "Qwen3ForCausalLM"),
}
LAYERS = 2


def build_family(family: Family, folder: Path) -> None:
    """A random model whose answers are far from uniform, saved as a published one is."""
    tokenizer = build_tokenizer()
    config = family.config(
        **{
            "vocab_size": len(tokenizer) + 7,  # published tables have more rows than the tokenizer has tokens
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **family.options,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == family.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, shared: Any) -> Path:
    target: Path = shared.make(f"family-{family}", lambda path: build_family(FAMILIES[family], path))
    return target


@pytest.fixture(scope="module")
def trainer(folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Training of one family, before its first step; tests leave the weights as they found them."""
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.setup import build_trainer

    torch.set_num_threads(1)
    changes = {"tasks": ["emotion", "sentiment"], "max_steps": 2, "warmup_steps": 0, "lora_r": 2}
    return build_trainer(parse_arguments(training_options(store, folder, tmp_path_factory.mktemp("run"), **changes)))


def test_lora_targets_are_the_projections_of_every_block(family: str, folder: Path) -> None:
    loaded = load_backbone(folder)
    assert find_lora_targets(loaded.model) == FAMILIES[family].targets
    weights = [name for name, value in loaded.model.named_parameters() if ".layers." in name and value.ndim == 2]
    assert len(weights) == LAYERS * len(FAMILIES[family].targets)  # there is no other matrix in a block


def test_two_steps_move_lora_and_the_adapter_and_nothing_else(family: str, trainer: Any) -> None:
    """Two, because LoRA's A has a gradient only once its B has left zero."""
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    lora = {name for name in before if "lora_A" in name or "lora_B" in name}
    pseudo_tokens = {name for name in before if "fusion_adapter.modules_to_save.default.pseudo_tokens" in name}
    assert len(lora) == 2 * LAYERS * len(FAMILIES[family].targets)
    assert lora <= moved
    assert pseudo_tokens
    assert pseudo_tokens & moved
    assert all(name in lora or "fusion_adapter.modules_to_save" in name for name in moved)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    model.load_state_dict(before)


def answered(trainer: Any) -> tuple[Any, MerCollator, Any]:
    """The model with LoRA away from zero, a collator, and its questions."""
    model = trainer.model.eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    dataset = trainer.data_collator.collator.dataset
    collator = MerCollator(dataset, trainer.processor)
    return model, collator, dataset


def chosen(dataset: Any, task: str, language: str, count: int) -> list[Any]:
    """Questions about texts of differing length, so that a batch of them is padded."""
    found = [q for q in dataset.questions if q.task.name == task and dataset.utterance(q.row).language == language]
    return sorted(found, key=lambda q: len(dataset.utterance(q.row).text or ""))[:: max(len(found) // count, 1)][:count]


@torch.no_grad()
@pytest.mark.parametrize(("task", "language"), [("emotion", "zh"), ("sentiment", "en")])
def test_scores_equal_one_whole_forward_for_each_answer(trainer: Any, task: str, language: str) -> None:
    model, collator, dataset = answered(trainer)
    core, processor = conditional_generation_of(model), trainer.processor
    questions = chosen(dataset, task, language, 3)
    answers = processor.answers(questions[0].task, language)
    answers = answers if len(answers) < 10 else answers[::12]
    end = processor.end_token_id
    read = collator.utterances([question.row for question in questions], [questions[0].task])
    asked = TaskPrompts(read.prompts[0], AnswerTree.build(answers, end))
    scores = AnswerTreeScorer(core).score([asked], read.inputs.model_inputs())[0].unnormalised
    for row, question in enumerate(questions):
        single = collator.batch([question], with_answer=False).model_inputs()
        length = single["input_ids"].shape[1]
        for column, answer in enumerate(answers):
            tail = torch.tensor([[*answer, end]])
            whole = {
                **single,
                "input_ids": torch.cat([single["input_ids"], tail], 1),
                "attention_mask": torch.ones(1, length + tail.shape[1], dtype=torch.long),
                "pseudo_token_mask": torch.nn.functional.pad(single["pseudo_token_mask"], (0, tail.shape[1])),
            }
            logits = core(**whole).logits[0, length - 1 : -1].double().log_softmax(-1)
            expected = logits.gather(1, tail.T).sum()
            assert float(scores[row, column]) == pytest.approx(float(expected), abs=2e-3, rel=1e-4)
    assert scores.std() > 0.1


@torch.no_grad()
def test_generation_is_the_most_probable_token_of_whole_forwards(trainer: Any) -> None:
    model, collator, dataset = answered(trainer)
    core, processor = conditional_generation_of(model), trainer.processor
    questions = chosen(dataset, "emotion", "en", 2)
    steps = 4
    inputs = collator.batch(questions, with_answer=False).model_inputs()
    arguments = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": processor.filler_id}
    output = core.generate(**inputs, **arguments)[:, -steps:]
    for row, question in enumerate(questions):
        single = collator.batch([question], with_answer=False).model_inputs()
        single.pop("attention_mask")
        for step in range(steps):
            best = core(**single).logits[0, -1].argmax()
            assert int(best) == int(output[row, step])
            single["input_ids"] = torch.cat([single["input_ids"], best.view(1, 1)], 1)
            single["pseudo_token_mask"] = torch.nn.functional.pad(single["pseudo_token_mask"], (0, 1))


def test_predictions_are_valid_with_free_generation_beside_them(trainer: Any) -> None:
    model, _, dataset = answered(trainer)
    predictor = Predictor(model, trainer.processor, generate=True)
    places = [dataset.questions.index(q) for q in chosen(dataset, "emotion", "zh", 2)]
    for prediction in predictor.predict(dataset, places):
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert isinstance(prediction.generated, str)


def test_gradient_checkpointing_gives_the_same_gradients(trainer: Any) -> None:
    model, collator, dataset = answered(trainer)
    model.train()
    batch = collator.batch(chosen(dataset, "emotion", "en", 3), with_answer=True).model_inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**copy.copy(batch), use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.gradient_checkpointing_disable()
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert any("lora_A" in name for name in gradients[0])
    assert any(name.startswith("base_model") and "fusion_adapter" in name for name in gradients[0])
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], atol=1e-5, rtol=1e-4), name
    assert fusion_adapter_of(model).training
