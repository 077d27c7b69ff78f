"""Shipped configurations are found from any working directory."""

from pathlib import Path

import pytest
from conftest import ROOT

from llm_mer.training.parsing import parse_arguments


def test_config_and_deepspeed_name_shipped_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_arguments(["--config", "configs/quickstart.yaml", "--use_cpu", "true"])
    model, training = config.model, config.training
    assert model.backbone == "tiny:llama"
    assert training.seed == 1111


def test_the_path_of_a_shipped_deepspeed_file_is_resolved_and_the_name_is_what_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_mer.errors import UserError
    from llm_mer.training.arguments import MerTrainingArguments

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    seen = MerTrainingArguments.__new__(MerTrainingArguments)
    with pytest.raises(UserError, match="launcher"):
        MerTrainingArguments.__init__(seen, output_dir="x", deepspeed="deepspeed_configs/zero2.json")
    assert seen.deepspeed == str(ROOT / "deepspeed_configs" / "zero2.json")
    assert seen.given["deepspeed"] == "deepspeed_configs/zero2.json"
