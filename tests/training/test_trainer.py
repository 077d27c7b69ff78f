"""Training: what moves and what stays, losses, refusals before any model, accumulation, resuming, the best checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import adapter_weights, make_utterances, values_of

import llm_mer.training.checks
import llm_mer.training.trainer
from llm_mer.backbones.loading import load_backbone
from llm_mer.checkpoints.description import TRAJECTORIES
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.cli.train import finetune
from llm_mer.data.dataset import MerDataset
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.metrics import compute_metrics
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.predictor import Predictor
from llm_mer.model.modeling_mer import conditional_generation_of, fusion_adapter_of
from llm_mer.prompting.tasks import get_task
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run import save_final
from llm_mer.training.setup import build_trainer

EVALUATED = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": "true"}


def history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "log_history.json").read_text())


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "glm", "qwen2"])
def test_the_adapter_and_lora_move_and_the_frozen_backbone_does_not(
    arguments: Callable[..., list[str]], backbones: dict[str, Path], architecture: str
) -> None:
    trainer = build_trainer(parse_arguments(arguments(backbone=backbones[architecture], max_steps=3, auxiliary_head="true")))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    adapter = {n for n in before if "fusion_adapter.modules_to_save" in n and n in dict(trainer.model.named_parameters())}
    assert adapter - moved <= {n for n in adapter if n.endswith(".missing")}, "parts of the adapter are dead"
    assert {n for n in before if "lora_B" in n} <= moved
    frozen = [n for n in before if "lora_" not in n and "modules_to_save" not in n]
    assert len(frozen) > 10
    assert not moved & set(frozen)
    published = load_backbone(backbones[architecture]).model
    core = conditional_generation_of(trainer.model)
    assert torch.equal(core.get_input_embeddings().weight, published.get_input_embeddings().weight)
    assert torch.equal(core.lm_head.weight, published.lm_head.weight)


def test_lora_rank_zero_trains_the_adapter_alone(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(max_steps=2, lora_r=0)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("fusion_adapter.modules_to_save" in name for name in moved)


def test_without_pseudo_tokens_the_language_model_learns_from_the_text_alone(
    arguments: Callable[..., list[str]], store: Path
) -> None:
    trainer = build_trainer(parse_arguments(arguments(max_steps=2, num_pseudo_tokens=0)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    utterances = UtteranceStore.open(store).split("test")[:4]
    dataset = MerDataset(utterances, [get_task("emotion")])
    predictor = Predictor(trainer.model, trainer.processor)
    own = [p.log_probabilities for p in predictor.predict(dataset)]
    assert own == [p.log_probabilities for p in predictor.predict(dataset.shuffled(["audio", "vision"], 0))]
    assert own != [p.log_probabilities for p in predictor.predict(dataset.shuffled(["transcript"], 0))]


def test_what_audio_and_vision_say_is_learnt_through_the_pseudo_tokens(trained: Path, store: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    utterances = [u for split in ("valid", "test") for u in UtteranceStore.open(store).split(split)]
    task = get_task("emotion")
    dataset = MerDataset(utterances, [task])

    def accuracy(data: MerDataset) -> float:
        found = pipeline.predictor.predict(data)
        return compute_metrics(task, [p.truth for p in found], values_of(found))["accuracy"]

    score = accuracy(dataset)
    assert score > 0.6
    assert score - accuracy(dataset.shuffled(["audio", "vision"], 0)) > 0.25
    assert abs(score - accuracy(dataset.shuffled(["text"], 0))) < 0.25
    sentiment = pipeline.predictor.predict(MerDataset(utterances, [get_task("sentiment")]))
    truth = torch.tensor([float(p.truth) for p in sentiment])
    error = (truth - torch.tensor([float(p.value) for p in sentiment])).abs().mean()
    assert error < 0.5 * (truth - truth.mean()).abs().mean()


def test_the_adapter_alone_trains_and_its_checkpoint_answers_alike(arguments: Callable[..., list[str]], store: Path) -> None:
    output = finetune(
        arguments(backbone="none", tasks=["emotion", "sentiment"], num_train_epochs=8, learning_rate="1e-2", **EVALUATED)
    )
    lines = history(output)
    assert lines[0]["loss_ce"] > 2 * lines[-3]["loss_ce"]
    assert max(line["eval_emotion_en_accuracy"] for line in lines if "eval_score" in line) > 0.8
    loaded = load_checkpoint(output)
    assert loaded.processor.tokenizer is None
    assert loaded.description.backbone is None
    dataset = MerDataset(list(UtteranceStore.open(store).split("test")), loaded.processor.tasks)
    found = Predictor(loaded.model, loaded.processor).predict(dataset)
    emotions = [p for p in found if p.task == "emotion"]
    assert sum(p.value == p.truth for p in emotions) > 0.8 * len(emotions)
    assert all(-3.0 <= float(p.value) <= 3.0 for p in found if p.task == "sentiment")


# --- losses -----------------------------------------------------------------------------------------------------------


def test_losses_are_logged_by_name_and_the_total_is_their_weighted_sum(arguments: Callable[..., list[str]]) -> None:
    output = finetune(
        arguments(max_steps=2, auxiliary_head="true", tasks=["emotion", "sentiment"], loss_weights=["ce=0.5", "l1=0.25"])
    )
    for line in history(output)[:2]:
        assert {"loss_lm", "loss_ce", "loss_l1"} <= line.keys()
        total = line["loss_lm"] + 0.5 * line["loss_ce"] + 0.25 * line["loss_l1"]
        assert float(line["loss"]) == pytest.approx(total, abs=2e-3)


def test_evaluation_logs_losses_scores_counts_and_trivial_baselines(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output = finetune(arguments(tasks=["emotion", "sentiment"], auxiliary_head="true", limit_train=16, **EVALUATED))
    line = next(line for line in history(output) if "eval_score" in line)
    assert {"eval_loss", "eval_loss_lm", "eval_loss_ce", "eval_loss_l1"} <= line.keys()
    assert not any(name.startswith("loss") for name in line)
    assert line["eval_emotion_en_n"] == line["eval_sentiment_zh_n"] == 16
    assert 0 < line["eval_emotion_zh_majority"] < 1
    headline = [line[f"eval_emotion_{x}_weighted_f1"] for x in ("en", "zh")]
    headline += [line[f"eval_sentiment_{x}_corr"] for x in ("en", "zh")]
    assert line["eval_score"] == pytest.approx(sum(headline) / 4)
    shown = capsys.readouterr().out
    assert "emotion [en] n=16: accuracy" in shown
    assert "sentiment [zh] n=16: MAE" in shown


def test_a_loss_weight_scales_its_gradient_and_zero_silences_it(arguments: Callable[..., list[str]]) -> None:
    gradients = {}
    for weights in (("lm=1", "ce=1"), ("lm=2", "ce=1"), ("lm=1", "ce=0"), ("lm=0", "ce=1")):
        trainer = build_trainer(parse_arguments(arguments(auxiliary_head="true", loss_weights=weights)))
        inputs = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=(inputs["labels"] != -100).sum()).backward()
        adapter = fusion_adapter_of(trainer.model)
        gradients[weights] = (adapter.fusion.weight.grad, adapter.head.classifier.weight.grad)
    both, double, lm, ce = gradients.values()
    assert torch.allclose(both[0], lm[0] + ce[0], atol=1e-6)
    assert torch.allclose(double[0], 2 * lm[0] + ce[0], atol=1e-6)
    assert lm[1] is None
    assert torch.allclose(both[1], ce[1])


def test_the_adapter_gets_its_own_learning_rate(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(adapter_learning_rate=0.25)))
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    grouped = [(names[p], group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({name for name, _ in grouped}) == sum(p.requires_grad for p in names)
    assert {rate for name, rate in grouped if "fusion_adapter" in name} == {0.25}
    assert {rate for name, rate in grouped if "lora_" in name} == {5e-3}


# --- refusals before any model ----------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown loss": ({"loss_weights": ["contrast=1"]}, r"no loss \['contrast'\].*'ce', 'l1', 'lm'"),
    "malformed loss weight": ({"loss_weights": ["ce"]}, "'ce' is not NAME=NUMBER"),
    "unknown adapter": ({"adapter": "attention"}, "unknown adapter 'attention'; choose one of egmf"),
    "unknown adapter option": ({"experts": 3}, "--experts"),
    "another adapter's option": ({"use_gate": "false"}, "--use_gate"),
    "unknown task": ({"tasks": ["mood"]}, "unknown task 'mood'; built in are emotion"),
    "a task twice": ({"tasks": ["emotion", "emotion"]}, "names a task twice"),
    "missing label column": ({"tasks": ["polarity"]}, "no training utterance has a label 'polarity'.*emotion, sentiment"),
    "wrong label set": ({"tasks": ["iemocap4"]}, "utterance 'train-0.*label '.*' is not in task 'iemocap4'"),
    "no prompt for the language": ({"prompts": ["prompts/short_en_classification.yaml"]}, "language 'zh'"),
    "no prompt for the kind": (
        {"tasks": ["sentiment"], "prompts": ["prompts/short_en_classification.yaml"]},
        "no prompt for regression task 'sentiment'",
    ),
    "unknown prompt": ({"prompts": ["poetic"]}, "'poetic' is no file, folder or style; styles are"),
    "no store": ({"data": "nowhere"}, "nowhere: no store.json"),
    "unknown format": ({"data": "vhs:tape"}, "unknown format 'vhs'"),
    "no training split": ({"train_split": "dev"}, "no split 'dev'; it holds test, train, valid"),
    "no evaluation split": ({"eval_split": "dev", **EVALUATED}, "no split 'dev' to evaluate on"),
    "no such configuration": ({"config": "nowhere.yaml"}, "no such file 'nowhere.yaml'"),
    "a folder as configuration": ({"config": "configs"}, "'configs' is a folder; name a YAML file"),
    "heads that do not divide": ({"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
    "no heads": ({"num_heads": 0}, "num_heads: 0; it must be at least 1"),
    "no experts": (
        {f"use_expert_{name}": "false" for name in ("local", "semantic", "global")},
        "EGMF needs at least one of its three experts",
    ),
    "fewer than no pseudo tokens": ({"num_pseudo_tokens": -1}, "num_pseudo_tokens: -1; it must be at least 0"),
    "nothing that changes an answer": (
        {"num_pseudo_tokens": 0, "lora_r": 0},
        "num_pseudo_tokens: 0 with lora_r: 0 changes no",
    ),
    "no audio steps": ({"max_audio_steps": 0}, "max_audio_steps: 0; it must be at least 1"),
    "no text features": ({"text_source": "features"}, "text_source: features, but the data have no text features"),
    "an empty batch": ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0; it must be at least 1"),
    "a file's variable": ({"output": "$RUNS/run"}, r"\$RUNS/run: only a shell replaces '\$RUNS'"),
    "a folder without a name": ({"output": "."}, "'.' has no name of its own"),
    "half precision without a GPU": ({"fp16": "true"}, "fp16: true needs a GPU"),
    "sharding without a launcher": ({"fsdp": "full_shard"}, "fsdp: start with accelerate launch"),
    "a tracker that is not there": ({"report_to": "fax"}, "report_to: 'fax' is not installed here; choose from all, none"),
    "saving every 0 steps": ({"save_strategy": "steps", "save_steps": 0}, "save_steps: 0; it must be above 0"),
    "an end token of one's own": ({"eos_token": "</s>"}, "eos_token: '</s>' would have no effect here"),
    "a norm below 0": ({"max_grad_norm": "-0.5"}, r"max_grad_norm: -0\.5; it must be at least 0"),
    "no step": ({"max_steps": 0}, "max_steps: 0; it must be at least 1, or -1 to train by num_train_epochs"),
    "fewer than no steps": ({"max_steps": -5}, "max_steps: -5; it must be at least 1, or -1"),
    "no epoch": ({"num_train_epochs": 0}, r"num_train_epochs: 0\.0; it must be above 0"),
    "a rate below 0": ({"learning_rate": "-0.001"}, r"learning_rate: -0\.001; it must be at least 0"),
    "no rate": ({"learning_rate": 0}, "learning_rate: 0, adapter_learning_rate: None: nothing is trained"),
    "no rate of what alone trains": (
        {"lora_r": 0, "adapter_learning_rate": 0},
        r"adapter_learning_rate: 0\.0: nothing is trained",
    ),
    "an adapter that runs uphill": ({"adapter_learning_rate": -1}, r"adapter_learning_rate: -1\.0; it must be at least 0"),
    "weights that grow": ({"weight_decay": -1}, r"weight_decay: -1\.0; it must be at least 0"),
    "a seed below 0": ({"seed": -1}, r"seed: -1; it must lie in \[0, 4294967295\]"),
    "a seed too large": ({"seed": 2**40}, r"seed: 1099511627776; it must lie in \[0, 4294967295\]"),
    "one of many seeds too large": ({"seed": None, "seeds": [1, 2**40]}, r"seeds: 1099511627776; a seed must lie in \[0, "),
    "a seed of missing steps": ({"missing_seed": -1}, "missing_seed: -1; it must lie in"),
    "no LoRA scaling": ({"lora_alpha": 0}, "lora_alpha: 0; it must be above 0"),
    "all of LoRA dropped": ({"lora_dropout": 1}, r"lora_dropout: 1\.0; it must lie in \[0, 1\)"),
    "less than none dropped": ({"modality_dropout": -1}, r"modality_dropout is -1\.0; it must lie in \[0, 1\)"),
    "every modality dropped": ({"modality_dropout": 2}, r"modality_dropout is 2\.0; it must lie in \[0, 1\)"),
    "all of the adapter dropped": ({"dropout": 1}, r"dropout is 1\.0; it must lie in \[0, 1\)"),
    "noise below 0": ({"feature_noise": -1}, r"feature_noise is -1\.0; it must be at least 0"),
    "a loss to be made larger": (
        {"loss_weights": ["lm=-1"]},
        "loss_weights: 'lm=-1'; a weight must be a finite number from 0",
    ),
    "a weight that is none": ({"loss_weights": ["lm=nan"]}, "loss_weights: 'lm=nan'; a weight must be a finite number"),
    "two weights of a loss": ({"loss_weights": ["lm=1", "lm=2"]}, "'lm' has two weights, 1 and 2"),
    "no patience": ({"early_stopping_patience": 0, **EVALUATED}, "early_stopping_patience: 0; it must be at least 1"),
    "nothing to stop by": ({"early_stopping_patience": 3}, "early_stopping_patience: 3, but eval_strategy is no"),
    "nothing to be best by": ({"load_best_model_at_end": "true"}, "load_best_model_at_end: true, but eval_strategy is no"),
    "the worst kept": (
        {"greater_is_better": "false", **EVALUATED},
        "greater_is_better: false, but more of metric_for_best_model 'score' is better",
    ),
    "a metric of nothing": (
        {"metric_for_best_model": "emotion_f1", **EVALUATED},
        "'emotion_f1' is not evaluated; choose from score, loss, nll, brier, emotion_en_accuracy",
    ),
    "probabilities of numbers": (
        {"metric_for_best_model": "nll", "tasks": ["sentiment"], **EVALUATED},
        "'nll' is not evaluated; choose from score, loss, sentiment_en_mae",
    ),
    "the only batch dropped": (
        {"dataloader_drop_last": "true", "per_device_train_batch_size": 1000},
        "dataloader_drop_last: the 96 training questions are less than one batch of 1000",
    ),
    "a language in capitals": ({"languages": ["EN"]}, "languages: 'EN'; choose from en, zh"),
    "a language that is not spoken": ({"languages": ["en", "fr"]}, "languages: 'fr'; choose from en, zh"),
    "output below a file": ({"output": "finetune.py/run"}, "output_dir: finetune.py is a file, not a folder"),
    "no folder to resume": ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: no such folder 'nowhere'"),
    "no checkpoint to resume": ({"resume_from_checkpoint": "tests"}, "tests holds no state of a training"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("no_backbone")
def test_a_mistake_is_refused_before_a_backbone_is_loaded(case: str, arguments: Callable[..., list[str]]) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        finetune(arguments(**changes))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"experts": 3}, "experts"),
        ({"gating": "random"}, "gating.*'random'.*hierarchical"),
        ({"text_source": "ear"}, "text_source.*'ear'.*backbone"),
        ({"token_expansion": "copy"}, "token_expansion.*'copy'"),
    ],
)
@pytest.mark.usefixtures("no_backbone")
def test_a_mistake_in_the_yaml_file_is_refused_before_a_backbone_is_loaded(
    entry: dict[str, Any], message: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(entry))
    with pytest.raises(UserError, match=message):
        finetune(arguments(config=path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tasks: [emotion", "run.yaml: not YAML"),
        (b"\xff\xfe\x00", "run.yaml is not a text file"),
        (b"- tasks", "run.yaml: it must be a mapping"),
        (b"3: emotion", "run.yaml: 3 is no name of an option"),
        (b"tasks: {emotion: 1}", "tasks: {'emotion': 1}; it must be a list"),
        (b"seed: 1\nseed: 2", "run.yaml: line 2: key 'seed' occurs twice"),
        (
            b"a: &a [" + b"x, " * 99 + b"x]\nb: &b [" + b"*a, " * 99 + b"*a]\nc: [" + b"*b, " * 99 + b"*b]",
            "run.yaml: line 3: aliases expand it to more than",
        ),
        (b"seed: !!python/object/apply:os.getpid []", "run.yaml: not YAML: could not determine a constructor"),
        (b"weight_decay: .nan", "weight_decay: nan; it must be finite"),
        (b"#" * (4 * 2**20 + 1), "run.yaml: 4194305 bytes; at most"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    content: bytes, message: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    argv = [a for a in arguments(config=path) if a not in ("--tasks", "emotion")]
    with pytest.raises(UserError, match=message):
        parse_arguments(argv)


def test_a_list_of_one_may_be_written_without_brackets(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tasks: sentiment\nprompts: short\nlanguages: en\nloss_weights: ce=0.5\n")
    argv = [a for a in arguments() if a not in ("--tasks", "emotion")]
    config = parse_arguments([f"--config={path}", *argv])
    data, model = config.data, config.model
    assert (data.tasks, data.prompts, data.languages, model.loss_weights) == (["sentiment"], ["short"], ["en"], ["ce=0.5"])


@pytest.mark.usefixtures("no_backbone")
def test_zero3_is_refused_for_an_adapter_that_averages_its_own_parameters(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_mer.training.checks, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match=r"ZeRO-3 shards.*'lsgmer' works on its own parameters.*use ZeRO-2"):
        finetune(arguments(adapter="lsgmer"))
    with pytest.raises(AssertionError, match="a backbone was loaded"):
        finetune(arguments(adapter="egmf"))


@pytest.mark.parametrize("sharding", ["is_deepspeed_enabled", "is_fsdp_enabled", None])
def test_where_gradients_are_sharded_a_part_that_did_not_run_has_one_all_the_same(
    sharding: str | None, arguments: Callable[..., list[str]]
) -> None:
    """DeepSpeed and FSDP add up the gradients that each process has, which must be of the same parameters."""
    trainer = build_trainer(parse_arguments(arguments()))
    unused = torch.nn.Parameter(torch.ones(2))
    fusion_adapter_of(trainer.model).register_parameter("unused", unused)
    if sharding is not None:
        setattr(trainer, sharding, True)
    trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader()))).backward()
    assert (unused.grad is None) == (sharding is None)
    assert sharding is None or torch.equal(unused.grad, torch.zeros(2))
    assert sharding is None or all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


def test_fsdp_where_accelerate_would_leave_it_out_is_refused(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.accelerator.is_available():
        pytest.skip("accelerate has FSDP here")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"FSDP, which it has for GPUs only.*zero3.json"):
        build_trainer(parse_arguments(arguments()))
    with pytest.raises(UserError, match=r"FSDP shards.*'lsgmer'.*use ZeRO-2"):
        build_trainer(parse_arguments(arguments(adapter="lsgmer")))


def test_an_adapter_alone_needs_no_text_features(arguments: Callable[..., list[str]]) -> None:
    for source in ("backbone", "features"):
        trainer = build_trainer(parse_arguments(arguments(backbone="none", text_source=source)))
        assert fusion_adapter_of(trainer.model).config.modalities == ("audio", "vision")


def test_what_is_not_to_be_read_needs_no_features(arguments: Callable[..., list[str]]) -> None:
    trainer = build_trainer(parse_arguments(arguments(text_source="features", use_text="false")))
    assert fusion_adapter_of(trainer.model).config.modalities == ("audio", "vision")


@pytest.mark.usefixtures("no_backbone")
def test_an_unknown_adapter_option_given_as_a_value_is_refused(arguments: Callable[..., list[str]]) -> None:
    config = parse_arguments(arguments())
    with pytest.raises(UserError, match=r"'egmf' has no option \['experts'\]"):
        config.replace(experts=3)


@pytest.mark.usefixtures("no_backbone")
def test_a_language_only_the_evaluation_has_needs_its_prompt_too(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    train = [u for u in make_utterances("train", 8) if u.language == "en"]
    data = write_store([*train, *make_utterances("valid", 8)], tmp_path / "store")
    with pytest.raises(UserError, match="language 'zh'"):
        finetune(arguments(data=data, prompts=["prompts/short_en_classification.yaml"], **EVALUATED))


def test_the_command_line_overrides_the_yaml_file(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"adapter": "gated_projector", "use_gate": False, "hidden_size": 24, "seed": 99}))
    argv = [a for a in arguments(config=path) if a not in ("--adapter", "egmf")]
    config = parse_arguments(argv)
    assert config.model.adapter == "gated_projector"
    assert config.adapter_options["use_gate"] is False
    assert config.adapter_options["hidden_size"] == 16
    assert config.training.seed == 7


# --- accumulation, resuming, choosing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "egmf"},
        {"adapter": "lsgmer", "moving_average_alpha": 0.5},
        {"adapter": "egmf", "backbone": "none"},
    ],
)
def test_accumulating_two_batches_of_four_equals_one_of_eight(
    changes: dict[str, Any], arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    outputs = []
    for batch, steps in ((8, 1), (4, 2)):
        output = tmp_path / f"{batch}x{steps}"
        outputs.append(
            finetune(
                arguments(
                    output=output,
                    per_device_train_batch_size=batch,
                    gradient_accumulation_steps=steps,
                    max_steps=12,
                    tasks=["emotion", "sentiment"],  # of which two halves of a batch have different counts
                    auxiliary_head="true",
                    learning_rate="1e-3",
                    **changes,
                )
            )
        )
    one, two = (history(output) for output in outputs)
    assert len(one) == len(two) == 13
    for a, b in zip(one[:-1], two[:-1], strict=True):
        losses = sorted(name for name in a if name.startswith("loss"))
        assert len(losses) >= 3
        for name in losses:
            assert float(a[name]) == pytest.approx(float(b[name]), abs=2e-3), name
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-2)
        parts = sum(float(a[name]) for name in losses if name != "loss")
        assert float(a["loss"]) == pytest.approx(parts, abs=2e-3)
    first, second = (adapter_weights(output) for output in outputs)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name


@pytest.mark.parametrize("adapter", ["egmf", "lsgmer"])
def test_resuming_in_the_middle_of_an_epoch_ends_with_bit_identical_weights(
    adapter: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes = {
        "adapter": adapter,
        "dropout": 0.2,
        "lora_dropout": 0.1,
        "modality_dropout": 0.2,
        "feature_noise": 0.1,
        "missing_rate": 0.3,
        "auxiliary_head": "true",
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 8,
    }
    if adapter == "egmf":  # stages count from the beginning of the whole run
        changes |= {"pseudo_token_gate": "true", "pseudo_token_dropout": 0.2, "words_first": 0.7, "auxiliary_fade": 0.9}
    whole = finetune(arguments(output=tmp_path / "whole", **changes))
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-8", resumed / "checkpoint-8")
    followed = whole / TRAJECTORIES
    assert followed.is_file() == (adapter == "lsgmer")
    if followed.is_file():
        shutil.copy(followed, resumed / TRAJECTORIES)  # with an epoch that the resumed run walks again
    state = json.loads((whole / "checkpoint-8" / "trainer_state.json").read_text())
    assert 1 < state["epoch"] < 2
    finetune(arguments(output=resumed, resume_from_checkpoint=resumed / "checkpoint-8", **changes))
    expected, found = adapter_weights(whole), adapter_weights(resumed)
    assert expected.keys() == found.keys()
    assert not any(torch.equal(v, adapter_weights(whole / "checkpoint-8")[n]) for n, v in expected.items() if "lora_B" in n)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    if followed.is_file():
        assert (resumed / TRAJECTORIES).read_text() == followed.read_text()


def test_resuming_from_another_run_is_refused_with_what_differs(
    arguments: Callable[..., list[str]], other_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    output = finetune(arguments(**saving))
    again = {**saving, "max_steps": 2, "output": tmp_path / "again", "resume_from_checkpoint": output / "checkpoint-1"}

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("llm_mer.backbones.loading.load_backbone", refuse)
    data = write_store([*make_utterances("train", 8, seed=3)], tmp_path / "other")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"adapter": "gated_projector"}, "adapter: 'egmf' there, 'gated_projector' here$"),
        ({"hidden_size": 24}, "another run: hidden_size: 16 there, 24 here$"),
        ({"tasks": ["emotion", "sentiment"]}, r"tasks: \['emotion'\] there, \['emotion', 'sentiment'\] here"),
        ({"missing_rate": 0.2}, r"another run: missing_rate: 0\.0 there, 0\.2 here$"),
        ({"lora_r": 2}, "another run: lora_r: 4 there, 2 here$"),
        ({"data": data}, r"data \(fingerprint\): '.*' there, '.*' here; training questions: 96 there, 8 here$"),
        ({"backbone": other_backbone}, r"another run: backbone: 'backbone-llama \(.*' there, 'backbone-other \(.*' here$"),
        ({"backbone": "none"}, "backbone: 'backbone-llama' there, 'none' here"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            build_trainer(parse_arguments(arguments(**{**again, **changes})))
    with pytest.raises(UserError, match="holds no state of a training"):
        build_trainer(parse_arguments(arguments(**{**again, "resume_from_checkpoint": output})))
    with pytest.raises(AssertionError, match="loaded"):
        build_trainer(parse_arguments(arguments(**again)))


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_missing_rate_takes_steps_from_training_and_leaves_evaluation_and_statistics_whole(
    arguments: Callable[..., list[str]], rate: float
) -> None:
    evaluated = {"eval_strategy": "epoch", "limit_eval": 8, "limit_train": 32}
    trainers = {
        r: build_trainer(parse_arguments(arguments(missing_rate=r, use_text="false", **evaluated))) for r in (0.0, rate)
    }
    whole, damaged = (trainer.data_collator.collator.dataset for trainer in trainers.values())
    assert trainers[0.0].processor.statistics["audio"].mean == pytest.approx(
        trainers[rate].processor.statistics["audio"].mean
    )
    steps = {name: 0 for name in ("whole", "damaged")}
    for row in damaged.rows:
        before, after = whole.utterance(row), damaged.utterance(row)
        left = [len(f) for u in (before, after) for f in [u.audio_features] if f is not None]
        steps["whole"] += left[0]
        steps["damaged"] += sum(left[1:])
        # The adapter reads no text here, so one step of sound or picture stays, and every batch can be trained on.
        assert after.audio_features is not None or after.vision_features is not None
    assert steps["damaged"] / steps["whole"] == pytest.approx(1 - rate, abs=0.12)
    evaluation = trainers[rate].evaluation
    assert evaluation is not None
    for row in evaluation.rows:
        assert evaluation.utterance(row) is not None
        assert np.array_equal(evaluation.utterance(row).audio_features, evaluation.utterances[row].audio_features)
    trainers[rate].train()


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_missing_rate_out_of_range_is_refused(arguments: Callable[..., list[str]], rate: float) -> None:
    with pytest.raises(UserError, match="missing_rate: "):
        parse_arguments(arguments(missing_rate=rate))


def test_no_model_card_is_left_but_the_users_own(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """TRL's tells of a language model fine-tuned from "None", PEFT's is a form with nothing filled in."""
    for backbone in (None, "none"):
        output = tmp_path / f"run-{backbone}"
        output.mkdir()
        (output / "README.md").write_text("mine")
        changes = {"backbone": backbone} if backbone else {}
        finetune(arguments(output=output, max_steps=1, save_strategy="steps", save_steps=1, **changes))
        assert (output / "checkpoint-1" / "llm_mer.json").is_file()
        assert list(output.rglob("README.md")) == [output / "README.md"]
        assert (output / "README.md").read_text() == "mine"


def test_label_embeddings_are_followed_from_the_start_to_the_weights_saved(arguments: Callable[..., list[str]]) -> None:
    output = finetune(arguments(adapter="lsgmer", num_train_epochs=2))
    lines = [json.loads(line) for line in (output / TRAJECTORIES).read_text().splitlines()]
    assert [(e["epoch"], e["name"]) for e in lines] == [(epoch, "label_embeddings") for epoch in (0, 1.0, 2.0)]
    (final,) = (value for name, value in adapter_weights(output).items() if name.endswith("label_embeddings"))
    np.testing.assert_allclose(lines[-1]["points"], final.numpy(), atol=1e-5)
    assert np.abs(np.array(lines[0]["points"]) - final.numpy()).max() > 1e-4


def test_an_adapter_that_follows_nothing_leaves_no_file(trained: Path) -> None:
    assert not (trained / TRAJECTORIES).exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    found = [
        adapter_weights(finetune(arguments(output=tmp_path / str(i), seed=seed, max_steps=2, dropout=0.2)))
        for i, seed in enumerate((3, 3, 4))
    ]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert not all(torch.equal(value, found[2][name]) for name, value in found[0].items())


def preset(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Evaluations score as given, one after the other."""
    left = iter(scores)
    monkeypatch.setattr(llm_mer.training.trainer, "summarise", lambda *_: {"eval_score": next(left)})


def test_training_stops_early_when_the_score_no_longer_rises(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    changes = {**EVALUATED, "num_train_epochs": 6, "early_stopping_patience": 2, "limit_train": 16, "limit_eval": 4}
    output = finetune(arguments(**changes))
    assert [line["eval_score"] for line in history(output) if "eval_score" in line] == [0.1, 0.5, 0.4, 0.5]


@pytest.mark.parametrize("backbone", ["llama", "none"])
def test_the_best_checkpoint_is_kept_and_is_what_training_ends_with(
    backbone: str, arguments: Callable[..., list[str]], backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset(monkeypatch, [0.1, 0.9, 0.3, 0.2, 0.2])
    changes = {**EVALUATED, "num_train_epochs": 4, "save_total_limit": 1, "limit_train": 16, "limit_eval": 4}
    output = finetune(arguments(backbone=backbones.get(backbone, backbone), **changes))
    kept = sorted(p.name for p in output.glob("checkpoint-*"))
    assert "checkpoint-4" in kept
    best, final = adapter_weights(output / "checkpoint-4"), adapter_weights(output)
    assert best.keys() == final.keys()
    assert all(torch.equal(value, final[name]) for name, value in best.items())
    last = adapter_weights(output / kept[-1])
    assert kept[-1] == "checkpoint-4" or not all(torch.equal(v, final[n]) for n, v in last.items())


def test_every_intermediate_checkpoint_answers_by_itself(arguments: Callable[..., list[str]], store: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    output = finetune(arguments(**changes))
    utterances = list(UtteranceStore.open(store).split("test"))[:4]
    for folder in (output / "checkpoint-1", output / "checkpoint-2", output):
        assert len(MerPipeline.from_pretrained(folder)(utterances)) == 4


def test_what_is_saved_to_answer_lacks_what_only_training_needs(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    trainer = build_trainer(parse_arguments(arguments(backbone="none", adapter="lpgnet", max_steps=1)))
    left_out = fusion_adapter_of(trainer.model).training_only_parameters()
    whole, final = tmp_path / "whole", tmp_path / "final"
    trainer.save_model(str(whole))
    save_final(trainer, final)
    dropped = adapter_weights(whole).keys() - adapter_weights(final).keys()
    assert dropped
    assert dropped == {n for n in adapter_weights(whole) if any(f".{prefix}" in f".{n}" for prefix in left_out)}
    load_checkpoint(final)


# --- adapters that read context ---------------------------------------------------------------------------------------


def test_an_adapter_that_reads_context_trains_on_dialogues(arguments: Callable[..., list[str]], store: Path) -> None:
    output = finetune(arguments(adapter="gated_xlstm", max_steps=2, context_window=4, **EVALUATED, eval_steps=2))
    pipeline = MerPipeline.from_pretrained(output)
    assert pipeline.predictor.adapter.uses_context
    assert pipeline.description.context == {"window": 4, "bidirectional": False}
    utterances = [u for u in UtteranceStore.open(store).split("test") if u.dialogue_id == "test-en-0"]
    together = pipeline(utterances)
    alone = pipeline(utterances[-1:])
    assert together[-1].log_probabilities != alone[0].log_probabilities


@pytest.mark.slow
def test_compiled_training_ends_with_the_weights_of_plain_training(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """``torch_compile``, without the code generation that needs minutes."""
    changes = {"max_steps": 4, "packing_length": 120, "learning_rate": "1e-3"}
    compiled = {"torch_compile": "true", "torch_compile_backend": "aot_eager"}
    plain = adapter_weights(finetune(arguments(output=tmp_path / "plain", **changes)))
    found = adapter_weights(finetune(arguments(output=tmp_path / "compiled", **changes, **compiled)))
    assert plain.keys() == found.keys()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_deepspeed_without_a_launcher_and_a_yaml_files_wrong_choice_are_refused_at_once(
    arguments: Callable[..., list[str]], tmp_path: Path, no_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"deepspeed: .*start with torchrun --standalone"):
        build_trainer(parse_arguments(arguments(deepspeed="deepspeed_configs/zero2.json")))
    options = tmp_path / "options.yaml"
    options.write_text("train_sampling_strategy: length\n")
    with pytest.raises(
        UserError, match="train_sampling_strategy: 'length' is not one of random, sequential, group_by_length"
    ):
        build_trainer(parse_arguments([*arguments(), "--config", str(options)]))
