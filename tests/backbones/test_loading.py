"""Loading a backbone: frozen, without remote code, and with one clear error for what is none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer

import llm_mer.backbones.loading
from llm_mer.backbones.loading import embedding_norm, load_backbone, quantization_config, read_tokenizer
from llm_mer.backbones.lora_targets import find_lora_targets
from llm_mer.checkpoints.loading import load_tokenizer
from llm_mer.errors import UserError

TARGETS = {
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "qwen2": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "glm": ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"],
}


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_lora_targets_are_every_projection_of_the_blocks_and_never_the_head(
    architecture: str, backbones: dict[str, Path]
) -> None:
    model = load_backbone(backbones[architecture]).model
    assert find_lora_targets(model) == TARGETS[architecture]
    assert find_lora_targets(model.base_model) == TARGETS[architecture]


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_lora_sits_in_every_block_and_not_in_the_adapter(
    architecture: str, backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    from conftest import training_options

    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.setup import build_trainer

    trainer = build_trainer(parse_arguments(training_options(store, backbones[architecture], tmp_path)))
    adapted = {n.split(".lora_A")[0] for n, _ in trainer.model.named_parameters() if ".lora_A." in n}
    assert len(adapted) == 2 * len(TARGETS[architecture])
    assert all(".language_model." in name and "fusion_adapter" not in name for name in adapted)


def test_a_model_without_blocks_asks_for_targets() -> None:
    with pytest.raises(UserError, match="set lora_targets"):
        find_lora_targets(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_a_loaded_backbone_is_frozen_in_eval_mode_and_can_pad(architecture: str, backbones: dict[str, Path]) -> None:
    loaded = load_backbone(backbones[architecture])
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.tokenizer.pad_token_id is not None
    norms = loaded.model.get_input_embeddings().weight.norm(dim=1)
    assert embedding_norm(loaded.model) == pytest.approx(float(norms.mean()))


def test_weights_can_be_loaded_in_bfloat16(backbones: dict[str, Path]) -> None:
    assert {p.dtype for p in load_backbone(backbones["llama"], dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_a_tokenizer_without_a_pad_token_gets_one(backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "copy"))
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_backbone(folder).tokenizer.pad_token_id is not None


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_a_backbones_tokenizer_splits_text_as_the_one_that_was_saved_with_it(
    architecture: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    made, loaded = build_tokenizer(), load_backbone(backbones[architecture]).tokenizer
    again = load_tokenizer(Path(loaded.save_pretrained(tmp_path)[0]).parent)
    for text in ("the train leaves at nine", "情绪：高兴", "joy -1.2 10", "火车九点开😀"):
        assert loaded(text)["input_ids"] == made(text)["input_ids"] == again(text)["input_ids"]


def test_remote_code_is_never_trusted_and_a_folder_never_asks_the_network(
    backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    for name in ("AutoModelForCausalLM", "PreTrainedTokenizerFast"):
        original = getattr(llm_mer.backbones.loading, name)

        class Watched:
            inner = original

            @classmethod
            def from_pretrained(cls, *args: Any, **options: Any) -> Any:
                seen.append(options)
                return cls.inner.from_pretrained(*args, **options)

        monkeypatch.setattr(llm_mer.backbones.loading, name, Watched)
    load_backbone(backbones["llama"])
    assert len(seen) == 2
    assert all(options["trust_remote_code"] is False and options["local_files_only"] is True for options in seen)
    package = Path(llm_mer.backbones.loading.__file__).parent.parent
    assert not [p for p in package.rglob("*.py") if "trust_remote_code=True" in p.read_text(encoding="utf-8")]


def test_a_folder_that_brings_its_own_code_is_refused_and_its_code_not_run(
    backbones: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "foreign"))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "foreign"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="foreign"):
        load_backbone(folder)
    assert not (tmp_path / "ran").exists()


def spoil(folder: Path, case: str) -> None:
    if case == "no configuration":
        (folder / "config.json").unlink()
    elif case == "damaged configuration":
        (folder / "config.json").write_text("{")
    elif case == "no weights":
        (folder / "model.safetensors").unlink()
    elif case == "weights cut off":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:500])
    elif case == "a weight is missing":
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        state.pop("model.layers.1.mlp.up_proj.weight")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif case == "not a language model":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]}))
    elif case == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif case == "published ChatGLM":
        (folder / "config.json").write_text(json.dumps({"model_type": "chatglm"}))


CASES = {
    "no configuration": r"has no config\.json",
    "damaged configuration": r"config\.json: damaged or cut off, not JSON",
    "no weights": "cannot be loaded",
    "weights cut off": "damaged",
    "a weight is missing": r"lack 1 weights, e\.g\. 'model\.layers\.1\.mlp\.up_proj\.weight'",
    "not a language model": "not a causal language model",
    "no tokenizer": "tokenizer",
    "published ChatGLM": "llm-mer convert-chatglm3 --source .* --target ",
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_is_no_backbone_gives_one_clear_error(case: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "folder"))
    spoil(folder, case)
    with pytest.raises(UserError, match=CASES[case]) as caught:
        load_backbone(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_never_goes_to_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_backbone(name)


def test_an_unreachable_hub_name_and_wrong_choices_are_named(backbones: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="'nobody/nothing-7b' cannot be loaded"):
        load_backbone("nobody/nothing-7b")
    with pytest.raises(UserError, match="dtype: 'float8' is not one of float32"):
        load_backbone(backbones["llama"], dtype="float8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flex_attention", "attn_implementation: 'flex_attention' is not one of eager, sdpa, flash_attention_2"),
        ("flash_attention_2", "attn_implementation: flash_attention_2 needs a GPU and the package flash-attn"),
    ],
)
def test_attention_that_is_not_there_is_refused(name: str, message: str, backbones: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(backbones["llama"], attn_implementation=name)


def test_an_unknown_quantisation_is_refused() -> None:
    with pytest.raises(UserError, match="quantization"):
        quantization_config("int2", torch.float32)


def changed_backbone(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_weights_of_other_shapes_than_the_configuration_says_are_one_line(
    backbones: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed_backbone(backbones["llama"], tmp_path / "other", vocab_size=500)
    with pytest.raises(UserError, match=r"other'?: its weights have other shapes than its config\.json says"):
        load_backbone(folder)


def test_layers_that_the_configuration_leaves_out_are_said(
    backbones: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_backbone(changed_backbone(backbones["llama"], tmp_path / "other", num_hidden_layers=1))
    assert re.search(r"9 weights in its files are not read, e\.g\. 'model\.layers\.1\.", caplog.text)


def test_a_tokenizer_of_more_tokens_than_the_embedding_has_rows_is_refused(
    backbones: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(backbones["llama"], tmp_path / "other"))
    larger = read_tokenizer(folder)
    rows = len(larger)
    larger.add_tokens(["ecstatic"])
    larger.save_pretrained(folder)
    with pytest.raises(UserError, match=f"its tokenizer has {rows + 1} tokens, its embedding {rows} rows; use its own"):
        load_backbone(folder)
