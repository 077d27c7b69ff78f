"""An optimiser that cannot be had and a hub that cannot be written are one line, before anything is loaded or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from llm_mer.checkpoints.loading import load_checkpoint
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.training import optimizers
from llm_mer.training.optimizers import PACKAGES, check_optimizer
from llm_mer.training.parsing import parse_arguments


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("adamw_bnb_8bit", "bitsandbytes"),
        ("paged_adamw_32bit", "bitsandbytes"),
        ("lion_32bit", "bitsandbytes"),
        ("galore_adamw", "galore-torch"),
        ("adamw_torch_8bit", "torchao"),
        ("schedule_free_radam", "schedulefree"),
        ("stable_adamw", "torch-optimi"),
        ("adalomo", "lomo-optim"),
    ],
)
def test_an_optimiser_whose_package_is_missing_names_it(
    name: str, package: str, arguments: Callable[..., list[str]], no_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"optim: {name} needs the package {package}, which is not installed: pip install"):
        finetune(arguments(optim=name))


def test_every_optimiser_of_transformers_is_known_by_its_package_or_comes_with_torch() -> None:
    own = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
    for name in (str(entry.value) for entry in optimizers.OptimizerNames):
        assert (name in own) != any(name.startswith(beginning) for beginning in PACKAGES), name
        if name in own:
            check_optimizer(name)


def test_an_unknown_optimiser_and_arguments_that_it_cannot_take_name_their_options(
    arguments: Callable[..., list[str]], no_backbone: None
) -> None:
    with pytest.raises(
        UserError, match=r"optim: 'adam' is no optimiser of transformers; adamw_torch, adamw_torch_fused, adafactor, sgd, "
    ):
        finetune(arguments(optim="adam"))
    with pytest.raises(UserError, match=r"optim: sgd, optim_args: momentum=much: could not convert"):
        finetune(arguments(optim="sgd", optim_args="momentum=much"))


class StubHub:
    """A hub that is reached, or not, when a repository is made and when files go there."""

    def __init__(self, refuses: Exception | None = None, upload: Exception | None = None) -> None:
        self.refuses, self.upload, self.files = refuses, upload, list[str]()

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert private
        if self.refuses is not None:
            raise self.refuses

    def repo_info(self, repo_id: str) -> Any:
        return type("Info", (), {"private": True})

    def upload_folder(self, *, folder_path: Path, **_: Any) -> Any:
        if self.upload is not None:
            raise self.upload
        self.files = sorted(path.name for path in Path(folder_path).iterdir())
        return type("Commit", (), {"commit_url": "https://hub.example/commit"})


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (LocalTokenNotFoundError("no"), r"pushing needs a token of the hub: `hf auth login`, or HF_TOKEN"),
        (OfflineModeIsEnabled("offline"), r"the hub cannot be reached or refused the upload: offline"),
        (ConnectionError("no route"), r"the hub cannot be reached or refused the upload: no route"),
    ],
)
def test_a_hub_that_cannot_be_written_is_told_before_training(
    refused: Exception, message: str, arguments: Callable[..., list[str]], no_backbone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: StubHub(refused))
    with pytest.raises(UserError, match=rf"push_to_hub: someone/mer: {message}; or leave push_to_hub out") as caught:
        finetune(arguments(push_to_hub="true", hub_model_id="someone/mer"))
    assert "\n" not in str(caught.value)


def test_a_push_that_fails_after_training_says_where_the_model_lies_and_how_to_push_it(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: StubHub(upload=ConnectionError("cable pulled")))
    output = tmp_path / "run"
    with pytest.raises(
        UserError, match=rf"{output} holds its checkpoint, .*cable pulled; .*`llm-mer push {output} some/mer`"
    ):
        finetune(arguments(push_to_hub="true", hub_model_id="some/mer", max_steps=1))
    load_checkpoint(output)
    assert RunManifest.load(output).complete


def test_what_training_pushes_is_what_push_pushes(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = StubHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    finetune(arguments(push_to_hub="true", hub_model_id="some/mer", max_steps=1))
    assert "pushed to https://hub.example/commit" in capsys.readouterr().out
    assert {"README.md", "llm_mer.json", "adapter_model.safetensors", "backbone", "checksums.json"} <= set(hub.files)
    assert "trainer_state.json" not in hub.files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_model_id": None}, "no repository is named; say hub_model_id: OWNER/NAME"),
        ({"hub_model_id": "../x"}, "hub_model_id: '../x' is not a repository name"),
        ({"seeds": ["1", "2"]}, "push one of them with `llm-mer push`"),
        ({"save_backbone": "never"}, "could then be loaded nowhere else; say save_backbone: always"),
        ({"hub_strategy": "all_checkpoints"}, "hub_strategy: .* would have no effect here"),
    ],
)
def test_a_push_that_could_not_be_right_is_refused_before_training(
    changes: dict[str, Any], message: str, arguments: Callable[..., list[str]], no_backbone: None
) -> None:
    with pytest.raises(UserError, match=message):
        finetune(arguments(**{"push_to_hub": "true", "hub_model_id": "someone/mer", **changes}))


def test_the_trainer_itself_never_pushes(arguments: Callable[..., list[str]]) -> None:
    config = parse_arguments(arguments(push_to_hub="true", hub_model_id="someone/mer"))
    assert config.training.push_to_hub is False
    assert config.training.given["push_to_hub"] is True
    assert config.replace(seed=3).training.given["push_to_hub"] is True
