"""transformers' auto classes read checkpoints once they are told of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_environment, training_options
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from llm_mer import register_auto_classes
from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.errors import UserError
from llm_mer.model.configuration_mer import MerConfig


def test_importing_the_model_registers_nothing() -> None:
    code = (
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\nimport llm_mer.checkpoints.auto_classes\n"
        "before = 'llm_mer' in CONFIG_MAPPING\nllm_mer.register_auto_classes()\nllm_mer.register_auto_classes()\n"
        "print(before, 'llm_mer' in CONFIG_MAPPING)"
    )
    found = subprocess.run([sys.executable, "-c", code], env=run_environment(), capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"], found.stderr


def test_the_configuration_of_a_checkpoint_is_the_models(trained: Path) -> None:
    register_auto_classes()
    config = AutoConfig.from_pretrained(trained)
    assert isinstance(config, MerConfig)
    assert isinstance(config.text_config, LlamaConfig)
    assert config.adapter == "egmf"
    own = load_checkpoint(trained).description.model
    assert config.adapter_config == own["adapter_config"]


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
def test_an_auto_class_loads_every_weight_that_load_checkpoint_loads(auto_class: type, trained: Path) -> None:
    register_auto_classes()
    found = auto_class.from_pretrained(trained, dtype=torch.float32)
    expected = load_checkpoint(trained, device="cpu").model.state_dict()
    assert not found.training
    assert found.state_dict().keys() == expected.keys()
    # PEFT keeps the fusion adapter's untrained values as well, which are drawn anew.
    trained_ones = {name: value for name, value in found.state_dict().items() if "original_module" not in name}
    assert all(torch.equal(value, expected[name]) for name, value in trained_ones.items())
    assert any("lora_A" in name for name in expected)


def test_an_option_that_would_be_ignored_is_refused(trained: Path) -> None:
    register_auto_classes()
    with pytest.raises(UserError, match="max_memory: a checkpoint of llm_mer takes revision, dtype and device_map"):
        AutoModel.from_pretrained(trained, max_memory={"cpu": "1GB"})
    with pytest.raises(UserError, match="device_map: 'auto': name one device"):
        AutoModel.from_pretrained(trained, device_map="auto")


def test_a_checkpoint_is_no_backbone(trained: Path, store: Path, tmp_path: Path) -> None:
    from llm_mer.cli.train import finetune

    with pytest.raises(UserError, match="holds a trained checkpoint, not a backbone; go on from it with init_checkpoint"):
        finetune(training_options(store, trained, tmp_path / "run"))
