"""Merged checkpoints answer like the ones they come from, without PEFT, from anywhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_quantisable, run_environment, training_options
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_mer.backbones.language_lora import language_blocks
from llm_mer.checkpoints.description import CheckpointDescription
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.merging import merge_checkpoint
from llm_mer.cli.main import main
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.model.modeling_mer import conditional_generation_of
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.setup import build_trainer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (extra quantization) is not installed"
)


def answers(folder: Path, store: Path, language: str | None = None, **options: Any) -> list[Any]:
    utterances = [u for u in UtteranceStore.open(store).split("test") if language in (None, u.language)][:6]
    return MerPipeline.from_pretrained(folder, **options)(utterances)


def furthest(one: list[Any], two: list[Any]) -> float:
    """Largest difference of any log-probability."""
    assert [(p.id, p.task) for p in one] == [(p.id, p.task) for p in two]
    return max(
        float(np.abs(np.subtract(a.log_probabilities, b.log_probabilities)).max()) for a, b in zip(one, two, strict=True)
    )


def train(store: Path, backbone: Path, folder: Path, **changes: Any) -> None:
    tasks = {"tasks": ["emotion", "sentiment"], "learning_rate": "2e-2"}
    finetune(training_options(store, backbone, folder, **tasks, **changes))


def with_biases(backbone: Path, folder: Path) -> None:
    """A copy whose biases are not zero."""
    shutil.copytree(backbone, folder)
    state = load_file(folder / "model.safetensors")
    torch.manual_seed(2)
    biases = {name: torch.randn_like(value) for name, value in state.items() if name.endswith("bias")}
    assert biases
    save_file({**state, **biases}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=["llama", "glm", "qwen2"])
def plain(request: pytest.FixtureRequest, shared: Any, backbones: dict[str, Path], store: Path) -> Path:
    """A trained checkpoint; Qwen2's projections have biases, Llama's and Qwen2's embeddings are tied to the head."""
    name = request.param
    backbone = backbones[name]
    if name == "qwen2":
        backbone = shared.make("qwen2-with-biases", lambda path: with_biases(backbones[name], path))
    folder: Path = shared.make(f"to-merge-{name}", lambda path: train(store, backbone, path))
    return folder


@pytest.fixture(scope="module")
def routed(shared: Any, backbones: dict[str, Path], store: Path) -> Path:
    sharing = {"lora_sharing": "shared_and_per_language", "lora_r": 2}
    folder: Path = shared.make("to-merge-routed", lambda path: train(store, backbones["llama"], path, **sharing))
    return folder


def test_a_merged_checkpoint_answers_the_same_to_1e_4(plain: Path, store: Path, tmp_path: Path) -> None:
    merged = merge_checkpoint(plain, tmp_path / "merged")
    before, after = answers(plain, store, generate=True), answers(merged, store, generate=True)
    assert furthest(before, after) < 1e-4
    assert [p.generated for p in before] == [p.generated for p in after]
    bare = MerPipeline.from_pretrained(plain)
    with torch.no_grad():
        for name, value in bare.predictor.model.named_parameters():
            if "lora_B" in name:
                value.zero_()
    utterances = list(UtteranceStore.open(store).split("test"))[:6]
    assert furthest(bare(utterances), after) > 0.05  # LoRA had something to say


def test_weights_are_the_backbones_plus_the_product_of_loras_two(plain: Path, tmp_path: Path) -> None:
    from conftest import adapter_weights

    merged = merge_checkpoint(plain, tmp_path / "merged")
    lora, config = adapter_weights(plain), json.loads((plain / "adapter_config.json").read_text())
    before = AutoModelForCausalLM.from_pretrained(plain / "backbone", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(merged / "backbone", dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    adapted = 0
    for name, value in before.items():
        key = f"base_model.model.model.language_model.{name.removeprefix('model.').removesuffix('.weight')}"
        expected = value.double()
        if f"{key}.lora_A.weight" in lora:
            down, up = lora[f"{key}.lora_A.weight"].double(), lora[f"{key}.lora_B.weight"].double()
            expected = expected + config["lora_alpha"] / config["r"] * up @ down
            adapted += 1
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert adapted == sum("lora_A" in name for name in lora) > 0


@pytest.mark.parametrize("plain", ["llama"], indirect=True)
def test_a_merged_checkpoint_describes_itself_and_loads_elsewhere_without_peft(
    plain: Path, store: Path, tmp_path: Path
) -> None:
    assert main(["merge", "--checkpoint", str(plain), "--output", str(tmp_path / "merged")]) == 0
    elsewhere = Path(shutil.move(tmp_path / "merged", tmp_path / "elsewhere"))
    assert not list(elsewhere.glob("adapter_*"))
    assert main(["info", "--path", str(elsewhere)]) == 0
    description = CheckpointDescription.load(elsewhere)
    assert description.merged == {"language": None, "lora_sharing": "shared", "quantization": "none"}
    assert description.baselines == CheckpointDescription.load(plain).baselines
    assert str(tmp_path) not in (elsewhere / "llm_mer.json").read_text(encoding="utf-8")
    program = (
        "import sys; sys.modules['peft'] = None; sys.modules['bitsandbytes'] = None\n"
        "from llm_mer.inference.pipeline import MerPipeline; from llm_mer.data.store import UtteranceStore\n"
        f"utterances = list(UtteranceStore.open({str(store)!r}).split('test'))[:2]\n"
        f"found = MerPipeline.from_pretrained({str(elsewhere)!r})(utterances)\n"
        "print([p.value for p in found])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=run_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([p.value for p in answers(plain, store)][:4])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_routed_lora_is_merged_for_one_language_which_alone_it_answers(
    language: str, routed: Path, store: Path, tmp_path: Path
) -> None:
    merged = merge_checkpoint(routed, tmp_path / "merged", language=language)
    before = answers(routed, store, language)
    assert furthest(before, answers(merged, store, language)) < 1e-4
    other = "zh" if language == "en" else "en"
    with pytest.raises(UserError, match=f"no prompt for classification task 'emotion' in language '{other}'"):
        answers(merged, store, other)
    with pytest.raises(UserError, match=r"routes LoRA by language.*name the one to merge: --language en or zh"):
        merge_checkpoint(routed, tmp_path / "neither")
    assert not (tmp_path / "neither").exists()
    # The ranks of the other language have no part in it.
    loaded = load_checkpoint(routed)
    own = [n for n, owners in enumerate(language_blocks("shared_and_per_language")) if language not in owners]
    with torch.no_grad():
        for name, value in conditional_generation_of(loaded.model).named_parameters():
            if "lora_B" in name:
                size = value.shape[1] // 3
                assert all(value[:, n * size : (n + 1) * size].abs().max() > 0 for n in own)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 1e-4), ("int8", 0.25)])
def test_a_quantised_checkpoint_is_merged_into_dequantised_weights(
    quantization: str, tolerance: float, shared: Any, store: Path, tmp_path: Path
) -> None:
    """NF4 answers the same. int8 rounds activations too while it is quantised, and no longer does when merged."""
    backbone = shared.make("quantisable", build_quantisable)
    folder = tmp_path / "run"
    train(store, backbone, folder, quantization=quantization, limit_train=32)
    merged = merge_checkpoint(folder, tmp_path / "merged")
    difference = furthest(answers(folder, store), answers(merged, store))
    assert difference < tolerance
    assert "quantization_config" not in json.loads((merged / "backbone" / "config.json").read_text())
    assert CheckpointDescription.load(merged).merged == {
        "language": None, "lora_sharing": "shared", "quantization": quantization,
    }  # fmt: skip
    assert CheckpointDescription.load(merged).backbone.quantization == "none"


@pytest.mark.parametrize("plain", ["llama"], indirect=True)
def test_merging_in_bfloat16_rounds_the_weights_once(plain: Path, tmp_path: Path) -> None:
    fine = AutoModelForCausalLM.from_pretrained(merge_checkpoint(plain, tmp_path / "a") / "backbone", dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(merge_checkpoint(plain, tmp_path / "b", dtype="bfloat16") / "backbone")
    assert half.dtype == torch.bfloat16
    state = half.state_dict()
    for name, value in fine.state_dict().items():
        # One rounding has a relative error of at most 2^-8; the backbone itself was rounded before LoRA was added.
        torch.testing.assert_close(state[name].float(), value, rtol=2**-7, atol=float(value.abs().max()) * 2**-8)


@pytest.mark.parametrize("plain", ["llama"], indirect=True)
def test_what_cannot_be_merged_is_refused_with_its_reason(
    plain: Path, store: Path, tmp_path: Path, backbones: dict[str, Path]
) -> None:
    merged = merge_checkpoint(plain, tmp_path / "merged")
    with pytest.raises(UserError, match="is merged already"):
        merge_checkpoint(merged, tmp_path / "again")
    with pytest.raises(UserError, match="exists already"):
        merge_checkpoint(plain, merged)
    with pytest.raises(UserError, match="has one LoRA for all languages"):
        merge_checkpoint(plain, tmp_path / "again", language="en")
    with pytest.raises(UserError, match="'float8' is not one of auto, float32"):
        merge_checkpoint(plain, tmp_path / "again", dtype="float8")
    changes = {"init_checkpoint": merged}
    with pytest.raises(UserError, match="is merged and has no LoRA to go on with"):
        build_trainer(parse_arguments(training_options(store, merged / "backbone", tmp_path / "run", **changes)))
    description = json.loads((merged / "llm_mer.json").read_text(encoding="utf-8"))
    (merged / "llm_mer.json").write_text(json.dumps({**description, "backbone": None}), encoding="utf-8")
    with pytest.raises(UserError, match="holds an adapter alone"):
        merge_checkpoint(merged, tmp_path / "again")
    (merged / "llm_mer.json").write_text(json.dumps(description), encoding="utf-8")
    (merged / "fusion_adapter.safetensors").unlink()
    with pytest.raises(UserError, match=r"no fusion_adapter\.safetensors"):
        load_checkpoint(merged)
    assert not (tmp_path / "again").exists()
