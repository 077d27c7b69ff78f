"""The manifest of a run: complete, faithful to what was given, free of secrets, and refused when it is damaged."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adapter_weights
from safetensors.torch import save_file

from llm_mer.checkpoints.description import CheckpointDescription, stack_versions
from llm_mer.checkpoints.run_differences import compare_settings
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest, git_state, weights_digest, without_secrets
from llm_mer.cli.train import finetune
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError


@pytest.fixture(scope="module")
def manifest(trained: Path) -> RunManifest:
    return RunManifest.load(trained)


def test_a_finished_run_tells_of_versions_machine_data_and_weights(
    manifest: RunManifest, trained: Path, store: Path
) -> None:
    description = CheckpointDescription.load(trained)
    assert manifest.complete
    assert manifest.versions == stack_versions()
    assert manifest.python == platform.python_version()
    assert manifest.data["fingerprint"] == UtteranceStore.open(store).info.fingerprint
    assert description.backbone is not None
    assert manifest.backbone == {"name": description.backbone.name, "fingerprint": description.backbone.fingerprint}
    assert (manifest.hardware.device, manifest.hardware.processes, manifest.hardware.threads) == ("cpu", 1, 1)
    assert manifest.hardware.cores >= 1
    assert manifest.hardware.memory_gib > 0.1
    assert manifest.weights_sha256 == weights_digest(trained)
    assert manifest.started <= str(manifest.finished)
    assert manifest.steps == json.loads((trained / "trainer_state.json").read_text())["global_step"]


def test_every_option_is_there_as_given_before_this_machine_fills_in_its_own(manifest: RunManifest) -> None:
    training = manifest.options["training"]
    assert training["bf16"] is None, "what a machine makes of bf16 is not what was given"
    assert training["use_cpu"] is False
    assert (training["learning_rate"], training["seed"], manifest.seed) == (0.01, 7, 7)
    assert manifest.options["model"]["lora_r"] == 4
    assert manifest.options["adapter"]["hidden_size"] == 16
    assert manifest.options["data"]["tasks"] == ["emotion", "sentiment"]
    assert manifest.command[:2] == ["finetune.py", "--data"]


def test_the_final_evaluation_is_noted_without_its_timings(arguments: Callable[..., list[str]]) -> None:
    output = finetune(arguments(max_steps=2, eval_strategy="steps", eval_steps=2, limit_train=16, limit_eval=8))
    found = RunManifest.load(output)
    last = [line for line in json.loads((output / "log_history.json").read_text()) if "eval_score" in line][-1]
    assert found.metrics["eval_score"] == pytest.approx(last["eval_score"])
    assert {"eval_loss", "eval_emotion_en_accuracy", "eval_emotion_zh_n"} <= found.metrics.keys()
    assert not [name for name in found.metrics if "runtime" in name or "per_second" in name]


def test_a_run_that_stops_midway_leaves_a_manifest_that_says_it_is_not_whole(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import llm_mer.training.run

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm_mer.training.run, "save_final", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(arguments(max_steps=1, limit_train=8))
    found = RunManifest.load(tmp_path / "run")
    assert not found.complete
    assert found.weights_sha256 is None


def test_a_token_on_the_command_line_or_among_the_options_is_not_written(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "not-a-real-token"
    with pytest.raises(UserError, match="hub_token: a token on a command line or in a file is seen by others") as refused:
        finetune(arguments(max_steps=1, limit_train=8, hub_token=secret))
    assert secret not in str(refused.value)
    (tmp_path / "run.yaml").write_text(f"hub_token: {secret}\n")
    with pytest.raises(UserError, match="set it in the environment: export HF_TOKEN"):
        finetune(arguments(max_steps=1, limit_train=8, config=tmp_path / "run.yaml"))
    monkeypatch.setenv("HF_TOKEN", secret)
    finetune(arguments(max_steps=1, limit_train=8, save_strategy="steps", save_steps=1))
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {MANIFEST, "trainer_state.json"} <= {path.name for path in written}
    assert "training_args.bin" not in {path.name for path in written}  # a pickle of every option
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert without_secrets(["--hub-token=x", "--hub_token", "x", "--seed", "1"]) == [
        "--hub-token=…",
        "--hub_token",
        "…",
        "--seed",
        "1",
    ]


def test_saving_and_loading_gives_the_same_manifest(manifest: RunManifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    assert RunManifest.load(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"hardware": {"cpu": "x"}}, "damaged or edited"),
        ({"options": {"training": {}}}, "damaged or edited"),
        ({"surprise": 1}, "damaged or edited"),
    ],
    ids=["newer", "hardware", "options", "unknown"],
)
def test_a_manifest_that_is_not_one_is_refused_by_its_file(
    change: dict[str, Any], message: str, manifest: RunManifest, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({**asdict(manifest), **change}))
    with pytest.raises(UserError, match=message) as refused:
        RunManifest.load(tmp_path)
    assert str(tmp_path / MANIFEST) in str(refused.value)


def test_differences_name_both_values_and_what_is_missing() -> None:
    found = compare_settings({"torch": "2.7", "same": 1, "gone": 2}, {"torch": "2.8", "same": 1, "new": 3})
    assert [str(difference) for difference in found] == [
        "torch: '2.7' then, '2.8' now",
        "gone: 2 then, None now",
        "new: None then, 3 now",
    ]


def test_the_weights_digest_follows_values_and_not_the_file(trained: Path, tmp_path: Path) -> None:
    weights = adapter_weights(trained)
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
    save_file(dict(reversed(weights.items())), tmp_path / "same" / "adapter_model.safetensors", metadata={"a": "b"})
    first = next(iter(weights))
    weights[first] = torch.nextafter(weights[first], torch.full_like(weights[first], 9.0))
    save_file(weights, tmp_path / "other" / "adapter_model.safetensors")
    assert weights_digest(tmp_path / "same") == weights_digest(trained)
    assert weights_digest(tmp_path / "other") != weights_digest(trained)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_git_state_follows_commits_changes_and_new_files_of_the_package(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_state(package) is None, "no checkout"
    git("init", "-q")
    assert git_state(package) is None, "a checkout that does not track the package"
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = git_state(package)
    assert clean is not None
    assert (clean.commit, clean.changes_sha256) == (git("rev-parse", "HEAD"), None)
    (tmp_path / "notes.txt").write_text("new, beside the package")
    assert git_state(package) == clean
    states = set()
    for text in ("x = 1", "x = 2"):
        (package / "new.py").write_text(text)
        states.add(str(git_state(package)))
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("y = 1")
    states.add(str(git_state(package)))
    assert len(states) == 3
    (package / "__init__.py").write_text("")
    assert git_state(package) == clean
